package server_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/server"
)

const patience = 10 * time.Second

// fake is a machine with a shell that echoes.
type fake struct {
	events  chan api.Event
	shell   func(net.Conn)
	refuse  error
	mu      sync.Mutex
	stopped []bool
}

func (f *fake) Status() api.Status { return api.Status{Name: "default", State: api.Running} }
func (f *fake) Watch(ctx context.Context, tell func(api.Event) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e, open := <-f.events:
			if !open {
				return nil
			}
			if err := tell(e); err != nil {
				return err
			}
		}
	}
}
func (f *fake) Stop(force bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopped = append(f.stopped, force)
}
func (f *fake) DialShell(context.Context) (net.Conn, error) {
	if f.refuse != nil {
		return nil, f.refuse
	}
	near, far := net.Pipe()
	go f.shell(far)
	return near, nil
}

func handler(f *fake) http.Handler { return server.Handler(f, slog.New(slog.DiscardHandler)) }

func TestRequests(t *testing.T) {
	for _, tc := range []struct {
		name, method, path, body string
		header                   http.Header
		status                   int
		answer                   string
	}{
		{"status", "GET", "/v1/status", "", nil, 200, `"state":"running"`},
		{"stop", "POST", "/v1/stop", `{"force":true}`, nil, 202, ""},
		{"stop without a body", "POST", "/v1/stop", "", nil, 202, ""},
		{"stop with nonsense", "POST", "/v1/stop", "{", nil, 400, `"code":"bad-setting"`},
		{"stop with too much", "POST", "/v1/stop", `{"force":` + strings.Repeat(" ", 1<<20) + "true}", nil, 400, "too large"},
		{"wrong method", "PUT", "/v1/status", "", nil, 404, `"code":"not-found"`},
		{"unknown path", "GET", "/v2/status", "", nil, 404, "/v2/status"},
		{"web page", "POST", "/v1/stop", "", http.Header{"Origin": {"http://evil.example"}}, 403, `"code":"permission"`},
		{"shell without upgrade", "POST", "/v1/shell", "", nil, 426, api.UpgradeShell},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := &fake{}
			req := httptest.NewRequest(tc.method, tc.path, strings.NewReader(tc.body))
			for k, v := range tc.header {
				req.Header[k] = v
			}
			w := httptest.NewRecorder()
			handler(f).ServeHTTP(w, req)
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.answer) {
				t.Errorf("%d %s: want %d and %s", w.Code, w.Body, tc.status, tc.answer)
			}
			if want := tc.status == 202; (len(f.stopped) == 1) != want {
				t.Errorf("stopped %v", f.stopped)
			} else if want && f.stopped[0] != (tc.body != "") {
				t.Errorf("force %v", f.stopped)
			}
			if tc.answer != "" && w.Header().Get("Content-Type") != "application/json" {
				t.Errorf("content type %q", w.Header().Get("Content-Type"))
			}
		})
	}
}

// TestErrorsSurvive: a class goes through the wire, whatever it is.
func TestErrorsSurvive(t *testing.T) {
	for err, status := range map[error]int{
		api.Errorf(api.CodeNotFound, "a"):     404,
		api.Errorf(api.CodeNotRunning, "b"):   409,
		api.Errorf(api.CodeGuestTimeout, "c"): 503,
		api.Errorf(api.CodeNotSupported, "d"): 501,
		api.Errorf(api.CodePermission, "e"):   403,
		api.Errorf(api.CodeName, "f"):         400,
		errors.New("g"):                       500,
	} {
		req := httptest.NewRequest("POST", "/v1/shell", nil)
		req.Header.Set("Upgrade", api.UpgradeShell)
		w := httptest.NewRecorder()
		handler(&fake{refuse: err}).ServeHTTP(w, req)
		var got api.Error
		if jerr := json.Unmarshal(w.Body.Bytes(), &got); jerr != nil || w.Code != status || got.Code != api.CodeOf(err) || got.Message != err.Error() {
			t.Errorf("%v became %d %s (%v)", err, w.Code, w.Body, jerr)
		}
	}
}

// serve puts m behind a real socket.
func serve(t *testing.T, m server.Machine) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := server.New(m, slog.New(slog.DiscardHandler))
	var done sync.WaitGroup
	done.Go(func() { srv.Serve(l) })
	t.Cleanup(func() {
		srv.Close()
		done.Wait()
	})
	return path
}

// TestWatch: each event is on the wire before the next one happens, and the stream ends with the machine.
func TestWatch(t *testing.T) {
	f := &fake{events: make(chan api.Event)}
	path := serve(t, f)
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	defer c.CloseIdleConnections()
	want := []api.Event{{Kind: api.EventState, State: api.Starting}, {Kind: api.EventProgress, Text: "waiting"}}
	go func() { f.events <- want[0] }()
	resp, err := c.Get("http://m/v1/watch")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	dec := json.NewDecoder(resp.Body)
	for i := range want {
		if i > 0 {
			f.events <- want[i]
		}
		var got api.Event
		if err := dec.Decode(&got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want[i], got); diff != "" {
			t.Error(diff)
		}
	}
	close(f.events)
	if err := dec.Decode(new(api.Event)); err != io.EOF {
		t.Errorf("after the machine's end: %v", err)
	}
}

// upgrade opens a shell and returns its stream.
func upgrade(t *testing.T, path, early string) (*net.UnixConn, *bufio.Reader) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "POST /v1/shell HTTP/1.1\r\nHost: m\r\nConnection: Upgrade\r\nUpgrade: "+api.UpgradeShell+"\r\n\r\n"+early); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%v %v", resp, err)
	}
	return conn.(*net.UnixConn), r
}

// TestShell passes bytes that come with the request, later ones, and the client's end; the guest has the last word.
func TestShell(t *testing.T) {
	f := &fake{shell: func(c net.Conn) {
		defer c.Close()
		io.CopyN(c, c, int64(len("early late")))
	}}
	conn, r := upgrade(t, serve(t, f), "early ")
	if _, err := io.WriteString(conn, "late"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || string(got) != "early late" {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestShellHalfClose: the end of input reaches the guest, which goes on.
func TestShellHalfClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "guest")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		in, _ := io.ReadAll(c)
		io.WriteString(c, "heard "+string(in))
	}()
	conn, r := upgrade(t, serve(t, &dialling{path: path}), "all")
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil || string(got) != "heard all" {
		t.Errorf("read %q, %v", got, err)
	}
}

// dialling is a machine whose shell is behind a unix socket, which has CloseWrite.
type dialling struct {
	fake
	path string
}

func (d *dialling) DialShell(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", d.path)
}
