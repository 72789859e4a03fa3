//go:build linux

package engine

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/service"
	"github.com/google/go-cmp/cmp"
)

// TestFallsBack boots engines whose dockerd (a shell script) does not like what it is told.
func TestFallsBack(t *testing.T) {
	reaper := service.NewReaper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	stop, end := context.WithCancel(context.Background())
	defer end()
	wg.Go(func() { reaper.Run(stop) })

	for name, c := range map[string]struct {
		daemon, script string
		want           []string // what was refused
		in             bool     // the key is in force
	}{
		"good":                  {`{"log-driver":"local"}`, `exec sleep 60`, nil, true},
		"a key of ours":         {`{"hosts":[],"log-driver":"local"}`, `exec sleep 60`, []string{`engine settings: daemon key "hosts" is coracle's own: remove it`}, false},
		"dockerd refuses a key": {`{"log-driver":"local"}`, `grep -q log-driver $0 && { echo "bad log-driver" >&2; exit 1; }; exec sleep 60`, []string{"engine settings: docker does not start with these settings: bad log-driver"}, false},
		"dockerd fails once for another reason": {`{"log-driver":"local"}`,
			`n=$(cat $0.n 2>/dev/null); echo x$n > $0.n; [ "$n" = xx ] && exec sleep 60; echo "no containerd" >&2; exit 1`, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			var refused []string
			e := New(Config{Reaper: reaper, Output: func(string) io.Writer { return io.Discard }, Step: func(string) func() { return func() {} },
				Refused: func(part string, err error) {
					if err != nil {
						part += ": " + err.Error()
					}
					refused = append(refused, part)
				}})
			dir := t.TempDir()
			e.file.path, e.containerd = filepath.Join(dir, "daemon.json"), filepath.Join(dir, "config.toml")
			e.dockerd.Path, e.dockerd.Args = "/bin/sh", []string{"-c", c.script, e.file.path}
			e.dockerd.Check = func(ctx context.Context) error { // a script that fails is not ready before it has
				select {
				case <-time.After(100 * time.Millisecond):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			e.dockerd.Cgroup, e.dockerd.Notify, e.dockerd.Env = "", "", os.Environ()
			spec := api.Spec{Daemon: json.RawMessage(c.daemon)}
			if err := e.Prepare(spec); err != nil {
				t.Fatal(err)
			}
			group, err := service.NewGroup(func(string, string, string) {}, service.Pause{Min: time.Millisecond, Max: time.Millisecond, Stable: time.Minute},
				service.Unit{Service: starter{e}})
			if err != nil {
				t.Fatal(err)
			}
			run, end := context.WithCancel(ctx)
			var wg sync.WaitGroup
			wg.Go(func() { group.Run(run) })
			defer wg.Wait()
			defer end()
			for group.Wait(ctx, Dockerd) != nil && ctx.Err() == nil {
				time.Sleep(5 * time.Millisecond)
			}
			if diff := cmp.Diff(c.want, refused); diff != "" {
				t.Error(diff)
			}
			if _, in := e.file.content()["log-driver"]; in != c.in {
				t.Errorf("the key is in force: %v, want %v", in, c.in)
			}
			e.daemon = &fakeDaemon{t: t, e: e, in: e.file.content()}
			if err := e.Apply(ctx, spec); err != nil {
				t.Errorf("the same Spec once more: %v", err)
			}
			refused = nil
			if err := e.Apply(ctx, api.Spec{}); err != nil {
				t.Error(err)
			}
			if got := strings.Join(refused, " "); (got == Settings) != (c.want != nil) {
				t.Errorf("a mended Spec takes back %q", got)
			}
		})
	}
}

func TestTrust(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts need root: run the tests as root")
	}
	dir := t.TempDir()
	tr := &trust{bundle: filepath.Join(dir, "bundle"), joined: filepath.Join(dir, "joined")}
	base := "-----BEGIN CERTIFICATE-----\nQUFB\n-----END CERTIFICATE-----\n"
	if err := os.WriteFile(tr.bundle, []byte(base), 0o644); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tr.set("") }()
	one := strings.ReplaceAll(base, "QUFB", "QkJC")
	key := "-----BEGIN PRIVATE KEY-----\nQUFB\n-----END PRIVATE KEY-----\n"
	for i, c := range []struct{ extra, want, err string }{
		{"", base, ""},
		{one, base + "\n" + one, ""},
		{one, base + "\n" + one, ""},
		{"# a comment\n" + one + key + one, base + "\n" + one + one, ""},
		{key, base + "\n" + one + one, "none in PEM"},
		{"", base, ""},
		{one, base + "\n" + one, ""},
	} {
		err := tr.set(c.extra)
		if err != nil && os.IsPermission(err) {
			t.Skipf("no mounts here: %v", err)
		}
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("step %d: %v", i, err)
		}
		if got, _ := os.ReadFile(tr.bundle); string(got) != c.want {
			t.Errorf("step %d: programs trust %q, want %q", i, got, c.want)
		}
	}
}

func FuzzCertificates(f *testing.F) {
	f.Add("-----BEGIN CERTIFICATE-----\nQUFB\n-----END CERTIFICATE-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		out, err := certificates(text)
		if err != nil {
			return
		}
		if text != "" && !strings.HasPrefix(string(out), "-----BEGIN CERTIFICATE-----\n") || strings.Contains(string(out), "PRIVATE") && !strings.Contains(text, "PRIVATE") {
			t.Fatalf("%q gives %q", text, out)
		}
		if again, err := certificates(string(out)); err != nil || string(again) != string(out) {
			t.Fatalf("%q is not stable: %q, %v", out, again, err)
		}
	})
}
