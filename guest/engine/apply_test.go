//go:build linux

package engine

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/google/go-cmp/cmp"
)

// fakeDaemon does what dockerd does with its file, as far as Apply sees.
type fakeDaemon struct {
	t     *testing.T
	e     *Engine
	state info
	did   []string

	in       settings // what dockerd goes by
	invalid  string
	noReload string
	noStart  func(settings) bool
	lost     bool // containers were stopped
}

func (f *fakeDaemon) file() settings {
	data, err := os.ReadFile(f.e.file.path)
	if err != nil {
		f.t.Fatal(err)
	}
	d := json.NewDecoder(strings.NewReader(string(data)))
	d.UseNumber()
	var s settings
	if err := d.Decode(&s); err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *fakeDaemon) validate(_ context.Context, s settings) error {
	f.did = append(f.did, "validate")
	if f.invalid != "" {
		return errors.New(f.invalid)
	}
	return nil
}

func (f *fakeDaemon) reload(context.Context) error {
	f.did = append(f.did, "reload")
	if f.noReload != "" {
		return errors.New(f.noReload)
	}
	for key, value := range f.file() {
		if _, ok := reloadable[key]; ok {
			f.in = f.in.with(key, value)
		}
	}
	return nil
}

func (f *fakeDaemon) restart(context.Context) error {
	f.did = append(f.did, "restart")
	f.lost = f.lost || f.state.running() && !f.in.live()
	if now := f.file(); f.noStart != nil && f.noStart(now) {
		if err := f.e.file.failed(errors.New("no such storage driver")); err != nil {
			f.t.Fatal(err)
		}
		if f.noStart(f.file()) {
			return errors.New("dockerd is down")
		}
	}
	f.in = f.file()
	_ = f.e.file.started()
	return nil
}

func (f *fakeDaemon) info(context.Context) (info, error) { return f.state, nil }

func newFake(t *testing.T) (*Engine, *fakeDaemon) {
	e := New(Config{Output: func(string) io.Writer { return io.Discard }, Refused: func(part string, err error) { t.Error(part, err) }})
	e.file.path = filepath.Join(t.TempDir(), "daemon.json")
	f := &fakeDaemon{t: t, e: e}
	e.daemon = f
	base, err := render(api.Spec{})
	if err == nil {
		err = e.file.set(base, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.in = f.file()
	return e, f
}

func TestApply(t *testing.T) {
	var running, swarm, both info
	running.ContainersRunning, both.ContainersRunning = 1, 1
	swarm.Swarm.LocalNodeState, both.Swarm.LocalNodeState = "active", "active"
	with := func(keys string) api.Spec { return api.Spec{Daemon: json.RawMessage(keys)} }
	for name, c := range map[string]struct {
		state info
		spec  api.Spec
		fault func(*fakeDaemon)
		want  string // what was done
		err   string
		class error
	}{
		"nothing":                {spec: api.Spec{}, want: ""},
		"reload":                 {state: running, spec: with(`{"insecure-registries":["r:5000"]}`), want: "validate reload"},
		"restart":                {state: running, spec: with(`{"log-driver":"local"}`), want: "validate reload restart reload"},
		"restart, nothing runs":  {spec: with(`{"bip":"10.1.0.1/24"}`), want: "validate reload restart reload"},
		"live-restore is asked":  {state: running, spec: with(`{"log-driver":"local","live-restore":true}`), want: "validate reload restart"},
		"proxy":                  {state: running, spec: api.Spec{Proxy: api.Proxy{HTTP: "http://p"}}, want: "validate reload restart reload"},
		"a bridge's key":         {state: running, spec: with(`{"bip":"10.1.0.1/24"}`), want: "validate", err: "bip", class: api.ErrRestart},
		"swarm, reload":          {state: both, spec: with(`{"debug":true}`), want: "validate reload"},
		"swarm, restart":         {state: both, spec: with(`{"log-driver":"local"}`), want: "validate", err: "swarm", class: api.ErrRestart},
		"swarm, nothing runs":    {state: swarm, spec: with(`{"log-driver":"local"}`), want: "validate restart"},
		"swarm and live-restore": {state: swarm, spec: with(`{"live-restore":true}`), want: "validate", err: "live-restore"},
		"own key":                {spec: with(`{"hosts":[]}`), want: "", err: "coracle's own"},
		"no certificate":         {spec: api.Spec{Certificates: "x"}, want: "", err: "none in PEM"},
		"invalid": {state: running, spec: with(`{"nonsense":1}`), fault: func(f *fakeDaemon) { f.invalid = "don't match any" },
			want: "validate", err: "don't match any"},
		"dockerd refuses the reload": {state: running, spec: with(`{"default-runtime":"x"}`), fault: func(f *fakeDaemon) { f.noReload = "no runtime x" },
			want: "validate reload", err: "no runtime x"},
		"dockerd refuses live-restore": {state: running, spec: with(`{"log-driver":"local"}`), fault: func(f *fakeDaemon) { f.noReload = "no" },
			want: "validate reload", err: "alive", class: api.ErrRestart},
		"dockerd does not start with it": {state: running, spec: with(`{"storage-driver":"x"}`),
			fault: func(f *fakeDaemon) { f.noStart = func(s settings) bool { return s["storage-driver"] != nil } },
			want:  "validate reload restart reload", err: "no such storage driver"},
		"dockerd does not start at all": {state: running, spec: with(`{"storage-driver":"x"}`),
			fault: func(f *fakeDaemon) { n := 0; f.noStart = func(settings) bool { n++; return n <= 2 } },
			want:  "validate reload restart restart reload", err: "dockerd is down"},
	} {
		t.Run(name, func(t *testing.T) {
			e, f := newFake(t)
			f.state = c.state
			if c.fault != nil {
				c.fault(f)
			}
			before := f.in
			err := e.Apply(t.Context(), c.spec)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) || errors.Is(err, api.ErrRestart) != (c.class != nil) {
				t.Errorf("Apply() = %v: want %q, class %v", err, c.err, c.class)
			}
			if got := strings.Join(f.did, " "); got != c.want {
				t.Errorf("did %q: want %q", got, c.want)
			}
			want := before
			if err == nil {
				want, _ = render(c.spec)
			}
			if diff := cmp.Diff(want, f.in); diff != "" {
				t.Errorf("dockerd goes by other settings: %s", diff)
			}
			if diff := cmp.Diff(want, f.file()); diff != "" {
				t.Errorf("the file has other settings: %s", diff)
			}
			if f.lost {
				t.Error("containers were lost")
			}
			if err != nil {
				return
			}
			f.did = nil
			if err := e.Apply(t.Context(), c.spec); err != nil || f.did != nil {
				t.Errorf("the same again: %v, did %v", err, f.did)
			}
			if err := e.Apply(t.Context(), api.Spec{}); err == nil && len(f.in.differ(before)) > 0 {
				t.Errorf("taken back, these differ: %v", f.in.differ(before))
			}
		})
	}
}

// TestLeave ends an engine whose containers would outlive it.
func TestLeave(t *testing.T) {
	e, f := newFake(t)
	e.leave()
	if f.did != nil {
		t.Errorf("did %v without need", f.did)
	}
	if err := e.Apply(t.Context(), api.Spec{Daemon: json.RawMessage(`{"live-restore":true}`)}); err != nil {
		t.Fatal(err)
	}
	e.leave()
	if f.in.live() {
		t.Error("containers stay behind")
	}
	if !f.file().live() {
		t.Error("the file forgot what the user wants")
	}
}
