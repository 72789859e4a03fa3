//go:build linux

package engine

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/google/go-cmp/cmp"
)

func TestRender(t *testing.T) {
	base, err := render(api.Spec{})
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"userland-proxy": true, "data-root": "/var/lib/docker", "firewall-backend": "nftables", "debug": false} {
		if base[key] != want {
			t.Errorf("%s is %v: want %v", key, base[key], want)
		}
	}
	type more = settings
	for name, c := range map[string]struct {
		spec api.Spec
		want settings // beside base
		err  string
	}{
		"nothing":           {api.Spec{}, more{}, ""},
		"null":              {api.Spec{Daemon: []byte("null")}, more{}, ""},
		"empty":             {api.Spec{Daemon: []byte(" {} ")}, more{}, ""},
		"another key":       {api.Spec{Daemon: []byte(`{"debug":true}`)}, more{"debug": true}, ""},
		"a default changed": {api.Spec{Daemon: []byte(`{"firewall-backend":"iptables"}`)}, more{"firewall-backend": "iptables"}, ""},
		"features changed": {api.Spec{Daemon: []byte(`{"features":{"cdi":false,"swarm-nftables":false}}`)},
			more{"features": map[string]any{"cdi": false, "swarm-nftables": false}}, ""},
		"features added": {api.Spec{Daemon: []byte(`{"features":{"cdi":false}}`)},
			more{"features": map[string]any{"cdi": false, "swarm-nftables": true}}, ""},
		"a number stays as it is": {api.Spec{Daemon: []byte(`{"max-concurrent-uploads":12345678901234567890}`)},
			more{"max-concurrent-uploads": json.Number("12345678901234567890")}, ""},
		"proxy": {api.Spec{Proxy: api.Proxy{HTTP: "http://p:1", No: "a,b"}}, more{"proxies": map[string]any{"http-proxy": "http://p:1", "no-proxy": "a,b"}}, ""},
		"the user's proxy": {api.Spec{Proxy: api.Proxy{HTTP: "http://p:1", HTTPS: "http://p:2"}, Daemon: []byte(`{"proxies":{"http-proxy":"http://q"}}`)},
			more{"proxies": map[string]any{"http-proxy": "http://q", "https-proxy": "http://p:2"}}, ""},
		"small MTU": {api.Spec{Network: api.Network{MTU: 1500}}, more{}, ""},
		"large MTU": {api.Spec{Network: api.Network{MTU: 9000}}, more{"mtu": json.Number("9000"),
			"default-network-opts": map[string]any{"bridge": map[string]any{"com.docker.network.driver.mtu": "9000"}}}, ""},
		"the user's MTU": {api.Spec{Network: api.Network{MTU: 9000}, Daemon: []byte(`{"mtu":1400,"default-network-opts":{"bridge":{"a":"b"}}}`)},
			more{"mtu": json.Number("1400"), "default-network-opts": map[string]any{"bridge": map[string]any{"a": "b", "com.docker.network.driver.mtu": "9000"}}}, ""},
		"host": {api.Spec{Network: api.Network{Host: "192.168.65.254"}}, more{"host-gateway-ips": []any{"192.168.65.254"}}, ""},
		"the user's host by its old name": {api.Spec{Network: api.Network{Host: "192.168.65.254"}, Daemon: []byte(`{"host-gateway-ip":"1.2.3.4"}`)},
			more{"host-gateway-ip": "1.2.3.4"}, ""},
		"own key":          {api.Spec{Daemon: []byte(`{"hosts":["tcp://0.0.0.0"]}`)}, nil, `"hosts" is coracle's own`},
		"own proxy":        {api.Spec{Daemon: []byte(`{"userland-proxy":false}`)}, nil, `"userland-proxy" is coracle's own`},
		"features no map":  {api.Spec{Daemon: []byte(`{"features":1}`)}, nil, "not an object"},
		"no object":        {api.Spec{Daemon: []byte(`[1]`)}, nil, "parse daemon keys"},
		"no JSON":          {api.Spec{Daemon: []byte(`{`)}, nil, "parse daemon keys"},
		"JSON and another": {api.Spec{Daemon: []byte(`{}{"hosts":[]}`)}, nil, "parse daemon keys"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := render(c.spec)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("render() = %v, %v: want an error with %q", got, err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := base
			for key, value := range c.want {
				want = want.with(key, value)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if again, err := render(api.Spec{}); err != nil || len(again.differ(base)) > 0 {
				t.Errorf("the next render() differs in %v, %v", again.differ(base), err)
			}
		})
	}
}

func FuzzRender(f *testing.F) {
	f.Add(`{"features":{"a":true}}`)
	f.Add(`{"proxies":{"a":{"b":[]}},"mtu":1e99}`)
	f.Fuzz(func(t *testing.T, extra string) {
		s, err := render(api.Spec{Daemon: json.RawMessage(extra), Proxy: api.Proxy{HTTP: "p"}, Network: api.Network{MTU: 9000}})
		if err != nil {
			return
		}
		data, err := json.Marshal(s)
		var got struct {
			Hosts []string `json:"hosts"`
			Root  string   `json:"data-root"`
		}
		if err == nil {
			err = json.Unmarshal(data, &got)
		}
		if err != nil || len(got.Hosts) != 1 || got.Hosts[0] != "unix://"+Socket || got.Root != "/var/lib/docker" {
			t.Fatalf("%q gives %s: %v", extra, data, err)
		}
	})
}

// TestReloadableIsMobys compares our table with what the pinned engine does at SIGHUP.
func TestReloadableIsMobys(t *testing.T) {
	list := exec.Command("go", "list", "-mod=mod", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/v2")
	list.Dir = "../../images/engine"
	list.Env = append(os.Environ(), "GOFLAGS=-mod=readonly", "GOPROXY=off")
	out, err := list.Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		t.Skipf("the engine's source is not in the module cache (%v): run `go mod download` in images/engine", err)
	}
	found := []string{"default-runtime", "default-ipc-mode", "default-cgroupns-mode"} // compared with the empty string there
	for _, name := range []string{"reload.go", "reload_unix.go"} {
		text, err := os.ReadFile(filepath.Join(dir, "daemon", name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`IsValueSet\("([^"]+)"\)`).FindAllStringSubmatch(string(text), -1) {
			found = append(found, m[1])
		}
	}
	var want []string
	for key := range reloadable {
		want = append(want, key)
	}
	want = append(want, "nri-opts") // its plugins are programs: a start anew is the safer way
	slices.Sort(want)
	slices.Sort(found)
	if diff := cmp.Diff(want, slices.Compact(found)); diff != "" {
		t.Errorf("what dockerd reads again (+) and what we say (-): %s", diff)
	}
}

func TestReason(t *testing.T) {
	for name, c := range map[string]struct{ log, want string }{
		"silence": {"", ""},
		"no error": {`time="2026-01-02T03:04:05Z" level=info msg="Starting up"
time="2026-01-02T03:04:05Z" level=warning msg="x" error="y"`, ""},
		"one with a cause": {`time="2026" level=error msg="Error reconfiguring the daemon" error="specified default runtime 'x' does not exist"`,
			"Error reconfiguring the daemon: specified default runtime 'x' does not exist"},
		"quotes": {`level=fatal msg="a \"b\" c"`, `a "b" c`},
		"no log": {"unable to configure the Docker daemon with file /x: bad\n", "unable to configure the Docker daemon with file /x: bad"},
		"many":   {"a\nb\nc\nd", "b; c; d"},
	} {
		if got := reason(strings.Split(c.log, "\n")); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestSaid(t *testing.T) {
	var through strings.Builder
	s := &said{to: &through}
	for _, part := range []string{"one\ntw", "o\n", strings.Repeat("x", 3*maxLine), "\nlast"} {
		if _, err := s.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"one", "two", strings.Repeat("x", maxLine)}, s.lines); diff != "" || string(s.rest) != "last" {
		t.Errorf("%s, rest %q", diff, s.rest)
	}
	for range 10 * maxSaid {
		if _, err := s.Write([]byte("more\n")); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.lines) != maxSaid {
		t.Errorf("%d lines are kept", len(s.lines))
	}
	if s.forget(); s.reason() != "" {
		t.Errorf("%q is not forgotten", s.reason())
	}
	if !strings.HasPrefix(through.String(), "one\ntwo\nxxx") {
		t.Errorf("passed on %.20q", through.String())
	}
}
