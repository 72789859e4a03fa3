package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/paths"
	"github.com/coracle-engine/coracle/host/socket"
)

const patience = 10 * time.Second

// TestMain makes the test's own program a host process, which does what the environment says.
func TestMain(m *testing.M) {
	if text, ok := os.LookupEnv("FAKE_CORACLED"); ok {
		fmt.Print(strings.NewReplacer("{args}", strings.Join(os.Args[1:], " "), "{home}", os.Getenv("CORACLE_HOME")).Replace(text))
		if strings.Contains(text, "{args}") {
			os.Exit(0)
		}
		if os.Getenv("FAKE_HANGS") != "" {
			time.Sleep(2 * time.Second)
		}
		if os.Getenv("FAKE_STATUS") != "" {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fake has this program act as coracled: it prints text and ends.
func fake(t *testing.T, text string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("CORACLE_CORACLED", self)
	t.Setenv("FAKE_CORACLED", text)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // else each lives for a second more
}

func newHome(t *testing.T) string {
	t.Helper()
	home, err := os.MkdirTemp("", "h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	return home
}

func place(t *testing.T, home, name string) paths.Machine {
	t.Helper()
	m, err := paths.ForMachine(home, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return m
}

func lines(events ...api.Event) string {
	var b strings.Builder
	for _, e := range events {
		json.NewEncoder(&b).Encode(e)
	}
	return b.String()
}

func state(s api.State) api.Event    { return api.Event{Kind: api.EventState, State: s} }
func failure(e *api.Error) api.Event { return api.Event{Kind: api.EventError, Error: e} }

// process is a host process of m: what it answers to each path.
func process(t *testing.T, m paths.Machine, answers map[string]http.HandlerFunc) {
	t.Helper()
	serve(t, m.APISocket(), answers)
}

func serve(t *testing.T, path string, answers map[string]http.HandlerFunc) {
	t.Helper()
	l, err := socket.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for path, f := range answers {
		mux.HandleFunc(path, f)
	}
	srv := &http.Server{Handler: mux}
	var done sync.WaitGroup
	done.Go(func() { srv.Serve(l) })
	t.Cleanup(func() {
		srv.Close()
		done.Wait()
	})
}

func says(v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if text, ok := v.(string); ok {
			io.WriteString(w, text)
			return
		}
		json.NewEncoder(w).Encode(v)
	}
}

func TestStatusWithoutProcess(t *testing.T) {
	home := newHome(t)
	m := place(t, home, "default")
	for _, tc := range []struct {
		name, last string
		want       api.Status
	}{
		{"nothing known", "", api.Status{Name: "default", State: api.Stopped}},
		{"stopped", `{"name":"x","state":"stopped","pid":7,"settings":{"cpus":2}}`, api.Status{Name: "default", State: api.Stopped, Settings: api.Settings{CPUs: 2}}},
		{"failed", `{"state":"failed","error":{"code":"disk-full","message":"m"}}`, api.Status{Name: "default", State: api.Failed, Error: &api.Error{Code: api.CodeDiskFull, Message: "m"}}},
		{"unreadable", `{"state":"run`, api.Status{Name: "default", State: api.Stopped}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			os.Remove(m.Last())
			if tc.last != "" {
				if err := os.WriteFile(m.Last(), []byte(tc.last), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := api.New(m).Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, killed := range []string{"starting", "running", "stopping"} {
		if err := os.WriteFile(m.Last(), []byte(`{"state":"`+killed+`","context":"coracle"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := api.New(m).Status(t.Context())
		if err != nil || got.State != api.Failed || api.CodeOf(got.Error) != api.CodeCrashed {
			t.Errorf("killed while %s: %+v, %v", killed, got, err)
		}
	}
	gone, err := paths.ForMachine(home, "gone")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.New(gone).Status(t.Context()); api.CodeOf(err) != api.CodeNotFound {
		t.Errorf("a machine that is not there: %v", err)
	}
	for name, call := range map[string]func() error{
		"watch": func() error { return api.New(m).Watch(t.Context(), nil) },
		"stop":  func() error { return api.New(m).Stop(t.Context(), false) },
		"shell": func() error { _, err := api.New(m).Shell(t.Context(), api.ShellRequest{}, api.ShellIO{}); return err },
	} {
		if err := call(); api.CodeOf(err) != api.CodeNotRunning {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRefusal(t *testing.T) {
	m := place(t, newHome(t), "default")
	process(t, m, map[string]http.HandlerFunc{
		"GET /v1/status": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusConflict)
			json.NewEncoder(w).Encode(api.Error{Code: api.CodeDataDisk, Message: "m", Hint: "h"})
		},
		"GET /v1/watch": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no words", http.StatusTeapot) },
	})
	_, err := api.New(m).Status(t.Context())
	var e *api.Error
	if !errors.As(err, &e) || *e != (api.Error{Code: api.CodeDataDisk, Message: "m", Hint: "h"}) {
		t.Errorf("error %#v", err)
	}
	if err := api.New(m).Watch(t.Context(), nil); api.CodeOf(err) != api.CodeInternal || !strings.Contains(err.Error(), "no words") {
		t.Errorf("error %v", err)
	}
}

// TestStop returns when the process is done, with the error it ended with.
func TestStop(t *testing.T) {
	for name, last := range map[string][]api.Event{
		"in order": {state(api.Stopping), state(api.Stopped)},
		"failing":  {failure(&api.Error{Code: api.CodeCrashed, Message: "m"}), state(api.Failed)},
	} {
		t.Run(name, func(t *testing.T) {
			m := place(t, newHome(t), "default")
			asked := make(chan bool, 1)
			process(t, m, map[string]http.HandlerFunc{
				"GET /v1/watch": func(w http.ResponseWriter, _ *http.Request) {
					io.WriteString(w, lines(state(api.Starting), state(api.Running)))
					w.(http.Flusher).Flush()
					if !<-asked {
						t.Error("stopped without force")
					}
					io.WriteString(w, lines(last...))
				},
				"POST /v1/stop": func(w http.ResponseWriter, r *http.Request) {
					var req api.StopRequest
					json.NewDecoder(r.Body).Decode(&req)
					w.WriteHeader(http.StatusAccepted)
					asked <- req.Force
				},
			})
			err := api.New(m).Stop(t.Context(), true)
			if failed := name == "failing"; failed != (api.CodeOf(err) == api.CodeCrashed && err != nil) || !failed && err != nil {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestWatchEnds(t *testing.T) {
	m := place(t, newHome(t), "default")
	stay := make(chan struct{})
	process(t, m, map[string]http.HandlerFunc{"GET /v1/watch": func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, lines(state(api.Starting)))
		w.(http.Flusher).Flush()
		select {
		case <-stay:
		case <-r.Context().Done():
		}
	}})
	own := errors.New("own")
	if err := api.New(m).Watch(t.Context(), func(api.Event) error { return own }); err != own {
		t.Errorf("error %v: want the caller's own", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := api.New(m).Watch(ctx, func(api.Event) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v after the end of the context", err)
	}
	close(stay)
	if err := api.New(m).Watch(t.Context(), func(api.Event) error { return nil }); err != nil {
		t.Errorf("error %v after the end of the process", err)
	}
}

func TestList(t *testing.T) {
	home := newHome(t)
	if got, err := api.List(t.Context(), home); err != nil || len(got) != 0 {
		t.Errorf("no home: %v, %v", got, err)
	}
	process(t, place(t, home, "b"), map[string]http.HandlerFunc{"GET /v1/status": says(api.Status{Name: "b", State: api.Running})})
	place(t, home, "a")
	for _, odd := range []string{"Odd Name", ".hidden"} {
		if err := os.Mkdir(filepath.Join(paths.Machines(home), odd), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(paths.Machines(home), "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := api.List(t.Context(), home)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]api.Status{{Name: "a", State: api.Stopped}, {Name: "b", State: api.Running}}, got); diff != "" {
		t.Error(diff)
	}
}

func TestShortCommands(t *testing.T) {
	home := newHome(t)
	fake(t, `[{"name":"home","level":"ok","detail":"d"}]`)
	checks, err := api.Doctor(t.Context(), home)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]api.Check{{Name: "home", Level: api.CheckOK, Detail: "d"}}, checks); diff != "" {
		t.Error(diff)
	}
	fake(t, "{}")
	if err := api.Delete(t.Context(), home, "x"); err != nil {
		t.Error(err)
	}
	if err := api.Delete(t.Context(), home, "../x"); api.CodeOf(err) != api.CodeName {
		t.Errorf("odd name: %v", err)
	}
	t.Setenv("FAKE_STATUS", "1")
	fake(t, `{"code":"already-running","message":"m"}`)
	if err := api.Delete(t.Context(), home, "x"); api.CodeOf(err) != api.CodeRunning {
		t.Errorf("refused: %v", err)
	}
	fake(t, "")
	if err := api.Delete(t.Context(), home, "x"); err == nil || api.CodeOf(err) != api.CodeInternal {
		t.Errorf("failed without a word: %v", err)
	}
}

// shell is a host process whose shell does as guest says.
func shell(t *testing.T, guest func(net.Conn)) *api.Client {
	t.Helper()
	m := place(t, newHome(t), "default")
	process(t, m, map[string]http.HandlerFunc{"POST /v1/shell": func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+api.UpgradeShell+"\r\n\r\n")
		guest(conn)
	}})
	return api.New(m)
}

func TestShell(t *testing.T) {
	c := shell(t, func(conn net.Conn) {
		kind, open, err := guestapi.ReadFrame(conn)
		var req api.ShellRequest
		if err != nil || kind != guestapi.FrameOpen || json.Unmarshal(open, &req) != nil || req.Command[0] != "cat" {
			t.Errorf("opened with %d %q, %v", kind, open, err)
		}
		var in strings.Builder
		sized := false
		for ended := false; !ended || !sized; {
			kind, data, err := guestapi.ReadFrame(conn)
			if err != nil {
				t.Error(err)
				return
			}
			switch kind {
			case guestapi.FrameData:
				in.Write(data)
			case guestapi.FrameResize:
				sized = string(data) == `{"rows":4,"cols":5}`
			case guestapi.FrameEOF:
				ended = true
			}
		}
		guestapi.WriteFrame(conn, guestapi.FrameData, []byte("out "+in.String()))
		guestapi.WriteFrame(conn, guestapi.FrameStderr, []byte("err"))
		guestapi.WriteFrame(conn, guestapi.FrameExit, []byte{137})
	})
	var out, errOut strings.Builder
	resize := make(chan api.Size, 1)
	resize <- api.Size{Rows: 4, Cols: 5}
	status, err := c.Shell(t.Context(), api.ShellRequest{Command: []string{"cat"}}, api.ShellIO{
		Stdin: strings.NewReader(strings.Repeat("x", 50_000)), Stdout: &out, Stderr: &errOut, Resize: resize,
	})
	if err != nil || status != 137 || out.Len() != 50_004 || errOut.String() != "err" {
		t.Errorf("status %d, %d bytes, %q, %v", status, out.Len(), errOut.String(), err)
	}
}

func TestShellFails(t *testing.T) {
	for name, tc := range map[string]struct {
		guest func(net.Conn)
		text  string
	}{
		"no process": {func(c net.Conn) { guestapi.WriteFrame(c, guestapi.FrameError, []byte("no such program")) }, "no such program"},
		"cut off": {func(c net.Conn) {
			guestapi.ReadFrame(c) // what is left unread when the stream is closed would make a reset of its end
			guestapi.ReadFrame(c)
			guestapi.WriteFrame(c, guestapi.FrameData, []byte("x"))
		}, "unexpected EOF"},
		"odd status":   {func(c net.Conn) { guestapi.WriteFrame(c, guestapi.FrameExit, []byte("xx")) }, "2 bytes"},
		"endless data": {func(c net.Conn) { c.Write([]byte{2, 0xff, 0xff, 0xff, 0xff}); io.Copy(io.Discard, c) }, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := shell(t, tc.guest).Shell(t.Context(), api.ShellRequest{}, api.ShellIO{Stdout: io.Discard, Stderr: io.Discard})
			if err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v: want %q", err, tc.text)
			}
		})
	}
	t.Run("given up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := shell(t, func(c net.Conn) { cancel(); io.Copy(io.Discard, c) })
		if _, err := c.Shell(ctx, api.ShellRequest{}, api.ShellIO{}); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}
