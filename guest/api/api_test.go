package api_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/google/go-cmp/cmp"
)

var secret = bytes.Repeat([]byte{7}, api.SecretLen)

type fakeAgent struct {
	hello    api.Hello
	applyErr error
	applied  chan api.Spec
	times    chan time.Time
	off      chan struct{}
	events   []api.Event
	more     chan api.Event // closed: the watch fails
}

func newFakeAgent() *fakeAgent {
	return &fakeAgent{
		hello:   api.Hello{Version: api.Version, Image: "1", Kernel: "6.12", BootID: "b"},
		applied: make(chan api.Spec, 1), times: make(chan time.Time, 1), off: make(chan struct{}, 1), more: make(chan api.Event),
	}
}

func (f *fakeAgent) Hello() api.Hello { return f.hello }
func (f *fakeAgent) Apply(_ context.Context, s api.Spec) error {
	f.applied <- s
	return f.applyErr
}
func (f *fakeAgent) SetTime(t time.Time) error { f.times <- t; return nil }
func (f *fakeAgent) Shutdown()                 { f.off <- struct{}{} }
func (f *fakeAgent) Watch(ctx context.Context, emit func(api.Event) error) error {
	for _, e := range f.events {
		if err := emit(e); err != nil {
			return err
		}
	}
	for {
		select {
		case e, ok := <-f.more:
			if !ok {
				return errors.New("over")
			}
			if err := emit(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// connect serves a on a unix socket whose connections must greet, and returns a client of it.
func connect(t *testing.T, a api.Agent) *api.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: api.Handler(a, noPorts{})}
	go s.Serve(greeted{l})
	t.Cleanup(func() { s.Close() })
	c := api.NewClient(func(ctx context.Context, port uint32) (net.Conn, error) {
		if port != api.PortAgent {
			return nil, fmt.Errorf("dialled port %d", port)
		}
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}, secret)
	t.Cleanup(c.Close)
	return c
}

type greeted struct{ net.Listener }

func (l greeted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return c, api.CheckGreeting(c, secret)
}

func TestClientAndHandler(t *testing.T) {
	ctx := t.Context()
	f := newFakeAgent()
	c := connect(t, f)

	got, err := c.Hello(ctx)
	if err != nil || got != f.hello {
		t.Errorf("Hello() = %v, %v", got, err)
	}
	spec := api.Spec{Hostname: "h", Network: api.Network{Address: "10.0.2.15/24", DNS: []string{"10.0.2.3"}, MTU: 1400}, Daemon: []byte(`{"debug":true}`)}
	if err := c.Apply(ctx, spec); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(spec, <-f.applied); diff != "" {
		t.Errorf("applied spec differs: %s", diff)
	}
	now := time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.UTC)
	if err := c.SetTime(ctx, now); err != nil {
		t.Error(err)
	}
	if got := <-f.times; !got.Equal(now) {
		t.Errorf("time set to %v: want %v", got, now)
	}
	if err := c.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	<-f.off
}

func TestClientErrors(t *testing.T) {
	f := newFakeAgent()
	f.applyErr = errors.New("no such gateway")
	f.hello.Version = api.Version + 1
	c := connect(t, f)
	if err := c.Apply(t.Context(), api.Spec{}); err == nil || !strings.Contains(err.Error(), "no such gateway") {
		t.Errorf("Apply() = %v: want the agent's own words", err)
	}
	if _, err := c.Hello(t.Context()); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("Hello() = %v: want an error about the version", err)
	}
}

func TestWatch(t *testing.T) {
	past := []api.Event{{Kind: api.EventStep, Name: "kernel", End: time.Second}, {Kind: api.EventReady, End: 2 * time.Second}}
	next := api.Event{Kind: api.EventFailed, Detail: "no disk"}
	stop := errors.New("enough")

	t.Run("past, then present, until the caller stops", func(t *testing.T) {
		f := newFakeAgent()
		f.events = past
		c := connect(t, f)
		var got []api.Event
		err := c.Watch(t.Context(), func(e api.Event) error {
			got = append(got, e)
			if len(got) == len(past) {
				go func() { f.more <- next }() // only a flushed stream lets the test come here
			}
			if len(got) == len(past)+1 {
				return stop
			}
			return nil
		})
		if !errors.Is(err, stop) {
			t.Errorf("Watch() = %v", err)
		}
		if diff := cmp.Diff(append(past, next), got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("the guest goes away", func(t *testing.T) {
		f := newFakeAgent()
		close(f.more)
		if err := connect(t, f).Watch(t.Context(), func(api.Event) error { return nil }); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("Watch() = %v: want an unexpected EOF", err)
		}
	})
	t.Run("the context ends", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f := newFakeAgent()
		f.events = past
		if err := connect(t, f).Watch(ctx, func(api.Event) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("Watch() = %v: want context.Canceled", err)
		}
	})
}

func TestHandlerRefuses(t *testing.T) {
	s := httptest.NewServer(api.Handler(newFakeAgent(), noPorts{}))
	defer s.Close()
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{"PUT", "/v1/spec", "{", http.StatusBadRequest},
		{"PUT", "/v1/spec", `{"hostname":"` + strings.Repeat("a", 1<<20) + `"}`, http.StatusBadRequest},
		{"PUT", "/v1/time", `"yesterday"`, http.StatusBadRequest},
		{"GET", "/v1/shutdown", "", http.StatusMethodNotAllowed},
		{"GET", "/v2/hello", "", http.StatusNotFound},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, s.URL+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s %s: status %d, want %d", c.method, c.path, resp.StatusCode, c.want)
		}
	}
}

// TestDialBounded has a guest that takes a stream and not a byte on it.
func TestDialBounded(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	c := api.NewClient(func(context.Context, uint32) (net.Conn, error) { return near, nil }, secret)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := c.Dial(ctx, api.PortDocker)
		failed <- err
	}()
	select {
	case err := <-failed:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Dial() = %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Dial outlives its context")
	}
}

func TestGreeting(t *testing.T) {
	var good bytes.Buffer
	if err := api.Greet(&good, secret); err != nil {
		t.Fatal(err)
	}
	good.WriteString("rest")
	if err := api.CheckGreeting(&good, secret); err != nil {
		t.Error(err)
	}
	if good.String() != "rest" {
		t.Errorf("CheckGreeting left %q: want what came after the greeting", good.String())
	}
	other := bytes.Repeat([]byte{8}, api.SecretLen)
	for name, c := range map[string]struct {
		sent string
		own  []byte
		want error
	}{
		"wrong secret":     {"CORACLE1" + string(other), secret, api.ErrGreeting},
		"wrong magic":      {"CORACLE0" + string(secret), secret, api.ErrGreeting},
		"short":            {"CORACLE1" + string(secret[1:]), secret, io.ErrUnexpectedEOF},
		"silent":           {"", secret, io.EOF},
		"own secret empty": {"CORACLE1" + string(secret), nil, api.ErrGreeting},
	} {
		if err := api.CheckGreeting(strings.NewReader(c.sent), c.own); !errors.Is(err, c.want) {
			t.Errorf("%s: CheckGreeting() = %v, want %v", name, err, c.want)
		}
	}
	if err := api.Greet(io.Discard, nil); err == nil {
		t.Error("Greet with no secret succeeded")
	}
}

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	big := bytes.Repeat([]byte("x"), api.MaxFrame)
	for _, p := range [][]byte{nil, []byte("hello"), big} {
		if err := api.WriteFrame(&b, api.FrameData, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := api.WriteFrame(&b, api.FrameData, append(big, 'x')); err == nil {
		t.Error("a frame beyond MaxFrame was written")
	}
	for _, want := range [][]byte{{}, []byte("hello"), big} {
		typ, got, err := api.ReadFrame(&b)
		if err != nil || typ != api.FrameData || !bytes.Equal(got, want) {
			t.Errorf("ReadFrame() = %d, %d bytes, %v: want %d bytes", typ, len(got), err, len(want))
		}
	}
	if _, _, err := api.ReadFrame(&b); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v, want io.EOF", err)
	}
	for _, cut := range []string{"\x02", "\x02\x00\x00\x00\x05", "\x02\x00\x00\x00\x05hell"} {
		if _, _, err := api.ReadFrame(strings.NewReader(cut)); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d bytes: %v, want io.ErrUnexpectedEOF", len(cut), err)
		}
	}
	if _, _, err := api.ReadFrame(strings.NewReader("\x02\xff\xff\xff\xff")); err == nil {
		t.Error("a frame of 4 GiB was accepted")
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x05hello\x06\x00\x00\x00\x01\x00"))
	f.Add([]byte("\x02\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		var again bytes.Buffer
		for {
			typ, payload, err := api.ReadFrame(r)
			if err != nil {
				break
			}
			if len(payload) > api.MaxFrame {
				t.Fatalf("payload of %d bytes", len(payload))
			}
			if err := api.WriteFrame(&again, typ, payload); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(data, again.Bytes()) {
			t.Fatalf("frames read from %q are %q", data, again.Bytes())
		}
	})
}

func FuzzCheckGreeting(f *testing.F) {
	f.Add([]byte("CORACLE1" + string(secret)))
	f.Add([]byte("CORACLE1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		err := api.CheckGreeting(bytes.NewReader(data), secret)
		if want := bytes.HasPrefix(data, append([]byte("CORACLE1"), secret...)); (err == nil) != want {
			t.Fatalf("CheckGreeting(%q) = %v", data, err)
		}
	})
}

type noPorts struct{}

func (noPorts) Published([]api.Publication) {}
