package api_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/host/api"
)

func TestLaunch(t *testing.T) {
	full := &api.Error{Code: api.CodeDiskFull, Message: "full", Hint: "h"}
	for _, tc := range []struct {
		name, text string
		seen       int
		code       api.Code
		message    string
	}{
		{"comes up", lines(state(api.Starting), state(api.Running)) + "what comes later", 2, "", ""},
		{"fails", lines(state(api.Starting), failure(full)), 2, api.CodeDiskFull, "full"},
		{"dies", lines(state(api.Starting)) + "panic: out of luck\n\ngoroutine 1:\n", 1, api.CodeInternal, "panic: out of luck"},
		{"says nothing", "", 0, api.CodeNotRunning, "stopped during its start"},
		{"is stopped", lines(state(api.Starting), state(api.Stopping), state(api.Stopped)), 3, api.CodeNotRunning, "stopped"},
		{"is owned by a process that does not answer", lines(failure(&api.Error{Code: api.CodeRunning, Message: "owned"})), 0, api.CodeRunning, "owned"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			home := newHome(t)
			fake(t, tc.text)
			seen := 0
			started, err := api.Launch(t.Context(), api.LaunchOptions{Home: home, Name: "default"}, func(api.Event) error { seen++; return nil })
			if seen != tc.seen || started != (tc.code != api.CodeRunning) {
				t.Errorf("saw %d events, want %d; started %t", seen, tc.seen, started)
			}
			if (err != nil) != (tc.code != "") || err != nil && (api.CodeOf(err) != tc.code || !strings.Contains(err.Error(), tc.message)) {
				t.Errorf("error %v: want code %q and %q", err, tc.code, tc.message)
			}
		})
	}
}

func TestLaunchArguments(t *testing.T) {
	home := newHome(t)
	fake(t, "{args}\n{home}\n")
	_, err := api.Launch(t.Context(), api.LaunchOptions{
		Home: home, Name: "work", CPUs: 3, Memory: 1 << 30, Arch: "arm64", Shares: []string{"/a:ro", "/b"}, Context: true, Since: time.Unix(5, 7),
	}, func(api.Event) error { return nil })
	want := "run --since 5000000007 --context=true --cpus 3 --memory 1073741824 --arch arm64 --share=/a:ro --share=/b -- work\n" + home
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("told %v: want %q", err, want)
	}
	for name, code := range map[string]api.Code{"Bad Name": api.CodeName, "-x": api.CodeName, "../x": api.CodeName, "": api.CodeName} {
		if _, err := api.Launch(t.Context(), api.LaunchOptions{Home: home, Name: name}, nil); api.CodeOf(err) != code {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := api.Launch(t.Context(), api.LaunchOptions{Home: "/" + strings.Repeat("x", 100), Name: "x"}, nil); api.CodeOf(err) != api.CodePathTooLong {
		t.Errorf("long path: %v", err)
	}
	t.Setenv("CORACLE_CORACLED", filepath.Join(home, "nothing"))
	if _, err := api.Launch(t.Context(), api.LaunchOptions{Home: home, Name: "x"}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a program: %v", err)
	}
}

// TestLaunchGivenUp: the caller goes away and the start goes on.
func TestLaunchGivenUp(t *testing.T) {
	fake(t, lines(state(api.Starting)))
	t.Setenv("FAKE_HANGS", "1")
	ctx, cancel := context.WithCancel(t.Context())
	began := time.Now()
	_, err := api.Launch(ctx, api.LaunchOptions{Home: newHome(t), Name: "x"}, func(api.Event) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) || time.Since(began) > patience {
		t.Errorf("error %v after %v", err, time.Since(began))
	}
}

// TestLaunchTwice follows the start of another process.
func TestLaunchTwice(t *testing.T) {
	fake(t, lines(failure(&api.Error{Code: api.CodeInternal, Message: "nobody should have started this"})))
	for _, tc := range []struct {
		name   string
		events []api.Event
		code   api.Code
	}{
		{"runs already", []api.Event{state(api.Starting), state(api.Running)}, ""},
		{"fails", []api.Event{state(api.Starting), failure(&api.Error{Code: api.CodeNoImage})}, api.CodeNoImage},
		{"is stopped", []api.Event{state(api.Starting), state(api.Stopping)}, api.CodeNotRunning},
	} {
		t.Run(tc.name, func(t *testing.T) {
			home := newHome(t)
			now := api.Running
			if tc.code != "" {
				now = api.Starting
			}
			m := place(t, home, "default")
			serve(t, m.DockerSocket(), map[string]http.HandlerFunc{"GET /_ping": says("OK")})
			process(t, m, map[string]http.HandlerFunc{
				"GET /v1/status": says(api.Status{State: now}), "GET /v1/watch": says(lines(tc.events...)),
			})
			started, err := api.Launch(t.Context(), api.LaunchOptions{Home: home, Name: "default"}, func(api.Event) error { return nil })
			if started || (err != nil) != (tc.code != "") || err != nil && api.CodeOf(err) != tc.code {
				t.Errorf("started %t, error %v: want code %q", started, err, tc.code)
			}
		})
	}
}

func TestFindCoracled(t *testing.T) {
	t.Setenv("CORACLE_CORACLED", "/x/coracled")
	if got, err := api.FindCoracled(); err != nil || got != "/x/coracled" {
		t.Errorf("%q, %v", got, err)
	}
	t.Setenv("CORACLE_CORACLED", "")
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if _, err := api.FindCoracled(); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("found what is not there: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "coracled"), []byte("#!"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := api.FindCoracled(); err != nil || got != filepath.Join(dir, "coracled") {
		t.Errorf("%q, %v", got, err)
	}
}

// TestLaunchOfTheDying: a host process says that it runs, but its engine answers nobody.
func TestLaunchOfTheDying(t *testing.T) {
	running := lines(state(api.Starting), state(api.Running))
	for _, tc := range []struct {
		name    string
		watch   http.HandlerFunc
		started bool
	}{
		{"it ends: another is started", says(running), true},
		{"it lives on: nothing is started", func(w http.ResponseWriter, r *http.Request) {
			says(running)(w, r)
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fake(t, running)
			home := newHome(t)
			process(t, place(t, home, "default"), map[string]http.HandlerFunc{
				"GET /v1/status": says(api.Status{State: api.Running}), "GET /v1/watch": tc.watch,
			})
			started, err := api.Launch(t.Context(), api.LaunchOptions{Home: home, Name: "default"}, func(api.Event) error { return nil })
			if err != nil || started != tc.started {
				t.Errorf("started %t, error %v: want %t", started, err, tc.started)
			}
		})
	}
}
