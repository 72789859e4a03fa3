//go:build linux

package engine

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDaemonJSON(t *testing.T) {
	base := map[string]any{
		"hosts": []any{"unix:///run/docker.sock"}, "containerd": containerdSocket, "data-root": "/var/lib/docker",
		"exec-root": "/run/docker", "pidfile": "/run/docker.pid", "firewall-backend": "nftables", "userland-proxy": false,
		"features": map[string]any{"swarm-nftables": true},
	}
	with := func(kv ...any) map[string]any {
		m := map[string]any{}
		for k, v := range base {
			m[k] = v
		}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i].(string)] = kv[i+1]
		}
		return m
	}
	for name, c := range map[string]struct {
		extra string
		want  map[string]any
		err   string
	}{
		"nothing":           {"", base, ""},
		"null":              {"null", base, ""},
		"empty":             {" {} ", base, ""},
		"another key":       {`{"debug":true}`, with("debug", true), ""},
		"a default changed": {`{"firewall-backend":"iptables"}`, with("firewall-backend", "iptables"), ""},
		"features merge": {`{"features":{"cdi":false,"swarm-nftables":false}}`,
			with("features", map[string]any{"cdi": false, "swarm-nftables": false}), ""},
		"features added":  {`{"features":{"cdi":false}}`, with("features", map[string]any{"cdi": false, "swarm-nftables": true}), ""},
		"own key":         {`{"hosts":["tcp://0.0.0.0"]}`, nil, `"hosts" is coracle's own`},
		"features no map": {`{"features":1}`, nil, "not an object"},
		"no object":       {`[1]`, nil, "parse daemon keys"},
		"no JSON":         {`{`, nil, "parse daemon keys"},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := DaemonJSON(json.RawMessage(c.extra))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Fatalf("DaemonJSON() = %s, %v: want an error with %q", data, err, c.err)
				}
				return
			}
			var got map[string]any
			if err == nil {
				err = json.Unmarshal(data, &got)
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzDaemonJSON(f *testing.F) {
	f.Add(`{"features":{"a":true}}`)
	f.Fuzz(func(t *testing.T, extra string) {
		data, err := DaemonJSON(json.RawMessage(extra))
		if err != nil {
			return
		}
		var got struct {
			Hosts []string       `json:"hosts"`
			Root  string         `json:"data-root"`
			Rest  map[string]any `json:"-"`
		}
		if err := json.Unmarshal(data, &got); err != nil || len(got.Hosts) != 1 || got.Hosts[0] != "unix://"+Socket {
			t.Fatalf("%q gives %s: %v", extra, data, err)
		}
	})
}

func TestReplace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "daemon.json")
	for i, c := range []struct {
		data string
		want bool
	}{{"a", true}, {"a", false}, {"b", true}} {
		changed, err := replace(path, []byte(c.data))
		if err != nil || changed != c.want {
			t.Errorf("step %d: %v, %v", i, changed, err)
		}
		if got, _ := os.ReadFile(path); string(got) != c.data {
			t.Errorf("step %d: file holds %q", i, got)
		}
	}
}

func TestPing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	status := http.StatusOK
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/_ping" {
			t.Errorf("asked for %s %s", r.Method, r.URL)
		}
		w.WriteHeader(status)
	})}
	go s.Serve(l)
	defer s.Close()
	if err := ping(t.Context(), path); err != nil {
		t.Error(err)
	}
	status = http.StatusInternalServerError
	if err := ping(t.Context(), path); err == nil {
		t.Error("an engine that answers with an error counts as up")
	}
	if err := ping(t.Context(), path+"x"); err == nil {
		t.Error("an engine that is not there counts as up")
	}
}
