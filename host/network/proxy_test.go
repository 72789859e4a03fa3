package network

import (
	"context"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/guest/api"
)

const ourNoProxy = "localhost,127.0.0.0/8,::1,host.docker.internal,gateway.docker.internal,host.containers.internal,192.168.65.0/24"

func TestProxy(t *testing.T) {
	n, err := New(Config{Loopback: true})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		settings api.Proxy
		env      map[string]string
		want     api.Proxy
	}{
		"none":       {},
		"no alone":   {env: map[string]string{"NO_PROXY": "x"}},
		"upper case": {env: map[string]string{"HTTP_PROXY": "http://p:1", "http_proxy": "http://q:2"}, want: api.Proxy{HTTP: "http://p:1", No: ourNoProxy}},
		"lower case": {env: map[string]string{"https_proxy": "https://u:pw@p:1/", "no_proxy": ".corp, 10.0.0.0/8,localhost"},
			want: api.Proxy{HTTPS: "https://u:pw@p:1/", No: ".corp,10.0.0.0/8," + ourNoProxy}},
		"no scheme": {env: map[string]string{"HTTP_PROXY": "proxy.corp:3128"}, want: api.Proxy{HTTP: "http://proxy.corp:3128", No: ourNoProxy}},
		"settings first": {settings: api.Proxy{HTTP: "http://s:1", No: "a"}, env: map[string]string{"HTTP_PROXY": "http://p:1", "HTTPS_PROXY": "http://p:2", "NO_PROXY": "b"},
			want: api.Proxy{HTTP: "http://s:1", HTTPS: "http://p:2", No: "a," + ourNoProxy}},
		"none of the host's": {settings: api.Proxy{HTTP: NoProxy, HTTPS: NoProxy}, env: map[string]string{"HTTP_PROXY": "http://p:1"}},
		"localhost": {env: map[string]string{"HTTP_PROXY": "http://LocalHost:3128", "HTTPS_PROXY": "http://u:p%40w@127.0.0.1:3128/"},
			want: api.Proxy{HTTP: "http://host.docker.internal:3128", HTTPS: "http://u:p%40w@host.docker.internal:3128/", No: ourNoProxy}},
		"ipv6 loopback": {env: map[string]string{"HTTP_PROXY": "socks5://[::1]:1080"}, want: api.Proxy{HTTP: "socks5://host.docker.internal:1080", No: ourNoProxy}},
		"no port":       {env: map[string]string{"HTTP_PROXY": "http://127.9.9.9"}, want: api.Proxy{HTTP: "http://host.docker.internal", No: ourNoProxy}},
		"other than it": {env: map[string]string{"HTTP_PROXY": "http://localhost.corp:1"}, want: api.Proxy{HTTP: "http://localhost.corp:1", No: ourNoProxy}},
	} {
		got, err := n.Proxy(context.Background(), c.settings, func(name string) string { return c.env[name] })
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// facts/faults.md, section 2, test 17: what an error says goes into logs, and a proxy's URL has a password.
func TestProxyErrorsKeepSecrets(t *testing.T) {
	n, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"http://user:hunter2@:80", "ftp://user:hunter2@h:1", "http://user:hunter2@h:port", "http://user:hunter2%@h"} {
		got, err := n.Proxy(context.Background(), api.Proxy{HTTPS: bad}, func(string) string { return "" })
		if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "HTTPS proxy") || got != (api.Proxy{}) {
			t.Errorf("%s: %v, %v", bad, got, err)
		}
	}
}

func TestSystemProxies(t *testing.T) {
	scutil := `<dictionary> {
  ExceptionsList : <array> {
    0 : *.local
    1 : 169.254/16
    2 : a*b.example
  }
  FTPPassive : 1
  HTTPEnable : 1
  HTTPPort : 3128
  HTTPProxy : proxy.corp
  HTTPSEnable : 0
  HTTPSPort : 3129
  HTTPSProxy : unused.corp
}
`
	if diff := cmp.Diff(api.Proxy{HTTP: "http://proxy.corp:3128", No: ".local,169.254/16"}, parseScutil(scutil)); diff != "" {
		t.Errorf("macOS: %s", diff)
	}
	if got := parseScutil("<dictionary> {\n}\n"); got != (api.Proxy{}) {
		t.Errorf("macOS without a proxy: %v", got)
	}
	for server, want := range map[string]api.Proxy{
		"proxy.corp:8080":                      {HTTP: "proxy.corp:8080", HTTPS: "proxy.corp:8080", No: ".corp,10.1.2.3"},
		"http=a:1;https=b:2;ftp=c:3;socks=d:4": {HTTP: "a:1", HTTPS: "b:2", No: ".corp,10.1.2.3"},
		"":                                     {No: ".corp,10.1.2.3"},
	} {
		if diff := cmp.Diff(want, parseInternetSettings(server, "*.corp;<local>;10.1.2.3;192.168.*")); diff != "" {
			t.Errorf("Windows, %q: %s", server, diff)
		}
	}
}

func FuzzSystemProxies(f *testing.F) {
	f.Add("  ExceptionsList : <array> {\n    0 : x\n  }\n  HTTPEnable : 1\n", "http=a:1;b", "*.x;<local>")
	f.Fuzz(func(t *testing.T, scutil, server, override string) {
		for _, p := range []api.Proxy{parseScutil(scutil), parseInternetSettings(server, override)} {
			if strings.ContainsAny(p.No, "*<>") {
				t.Errorf("exceptions are %q", p.No)
			}
		}
	})
}
