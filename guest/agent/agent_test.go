//go:build linux

package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/engine"
	"github.com/coracle-engine/coracle/guest/service"
	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/vsock"
)

var (
	quiet  = slog.New(slog.DiscardHandler)
	secret = bytes.Repeat([]byte{7}, api.SecretLen)
)

func listen(t *testing.T) *net.UnixListener {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.UnixListener)
}

func dial(t *testing.T, l net.Listener) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.UnixConn)
}

func anyone(net.Addr) bool { return true }

func TestFromHost(t *testing.T) {
	for addr, want := range map[net.Addr]bool{
		&vsock.Addr{ContextID: api.HostCID, Port: 1}:  true,
		&vsock.Addr{ContextID: 1, Port: 1}:            false, // the guest itself
		&vsock.Addr{ContextID: api.GuestCID, Port: 1}: false,
		&net.UnixAddr{}: false,
	} {
		if got := fromHost(addr); got != want {
			t.Errorf("fromHost(%v) = %v", addr, got)
		}
	}
}

func TestGate(t *testing.T) {
	beneath := listen(t)
	g := newGate(beneath, secret, anyone, quiet)

	silent := dial(t, beneath) // must keep nobody waiting
	wrong := dial(t, beneath)
	if err := api.Greet(wrong, bytes.Repeat([]byte{8}, api.SecretLen)); err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.Read(make([]byte, 1)); !isEnd(err) {
		t.Errorf("a stranger was not cut off: %v", err)
	}
	good := dial(t, beneath)
	if err := api.Greet(good, secret); err != nil {
		t.Fatal(err)
	}
	in, err := g.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := good.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(in, buf); err != nil || string(buf) != "hello" {
		t.Errorf("after the greeting came %q, %v", buf, err)
	}
	in.Close()

	late := dial(t, beneath) // greets, and nobody accepts it
	if err := api.Greet(late, secret); err != nil {
		t.Fatal(err)
	}
	g.Close()
	if _, err := g.Accept(); err == nil {
		// late was in the queue; the next cannot be
		if _, err := g.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept() after Close = %v", err)
		}
	}
	silent.Close()
}

func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || err != nil && strings.Contains(err.Error(), "reset")
}

func TestGateRefusesOthersThanTheHost(t *testing.T) {
	beneath := listen(t)
	g := newGate(beneath, secret, func(net.Addr) bool { return false }, quiet)
	c := dial(t, beneath)
	_ = api.Greet(c, secret) // may already be cut off
	if _, err := c.Read(make([]byte, 1)); !isEnd(err) {
		t.Errorf("a peer that is not the host was let in: %v", err)
	}
	g.Close()
	if _, err := g.Accept(); err == nil {
		t.Error("it was accepted")
	}
}

func TestGateTakesManyAtOnce(t *testing.T) {
	beneath := listen(t)
	g := newGate(beneath, secret, anyone, quiet)
	const n = 4 * maxStrangers
	var wg sync.WaitGroup
	wg.Go(func() {
		for range n {
			c, err := g.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			wg.Go(func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			})
		}
	})
	for i := range n {
		wg.Go(func() {
			c := dial(t, beneath)
			defer c.Close()
			msg := fmt.Sprint(i)
			if err := api.Greet(c, secret); err != nil {
				t.Error(err)
			}
			_, _ = io.WriteString(c, msg)
			_ = c.CloseWrite()
			if got, err := io.ReadAll(c); err != nil || string(got) != msg {
				t.Errorf("connection %d got %q, %v", i, got, err)
			}
		})
	}
	wg.Wait()
	g.Close()
}

func TestEvents(t *testing.T) {
	now := time.Duration(0)
	v := newEvents(func() time.Duration { now += time.Second; return now }, quiet)
	end := v.step("data disk")
	v.add(api.Event{Kind: api.EventReady})
	end()

	stop := errors.New("stop")
	var got []api.Event
	err := v.watch(t.Context(), func(e api.Event) error {
		got = append(got, e)
		if len(got) == 2 {
			go v.add(api.Event{Kind: api.EventFailed, Detail: "x"})
		}
		if len(got) == 3 {
			return stop
		}
		return nil
	})
	want := []api.Event{
		{Kind: api.EventReady, End: 2 * time.Second},
		{Kind: api.EventStep, Name: "data disk", Start: time.Second, End: 3 * time.Second},
		{Kind: api.EventFailed, Detail: "x", End: 4 * time.Second},
	}
	if diff := cmp.Diff(want, got); diff != "" || !errors.Is(err, stop) {
		t.Errorf("watch() = %v, %s", err, diff)
	}

	for i := range 10 * maxEvents {
		v.add(api.Event{Kind: api.EventService, Detail: fmt.Sprint(i)})
	}
	if len(v.past) > maxEvents {
		t.Errorf("%d events are kept", len(v.past))
	}
	got = nil
	last := fmt.Sprint(10*maxEvents - 1)
	_ = v.watch(t.Context(), func(e api.Event) error {
		got = append(got, e)
		if e.Detail == last {
			return stop
		}
		return nil
	})
	if len(got) != len(v.past) {
		t.Errorf("a watcher saw %d events of %d", len(got), len(v.past))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.watch(ctx, func(api.Event) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("watch() = %v", err)
	}
}

// TestEventsForwards has many sets of forwards pass: who watches later hears of the newest alone.
func TestEventsForwards(t *testing.T) {
	v := newEvents(func() time.Duration { return 1 }, quiet)
	v.add(api.Event{Kind: api.EventReady})
	for i := range 3 * maxEvents {
		v.add(api.Event{Kind: api.EventForwards, Forwards: []api.Forward{{ID: uint64(i)}}})
	}
	var got []string
	enough := errors.New("enough")
	err := v.watch(t.Context(), func(e api.Event) error {
		got = append(got, e.Kind)
		switch len(got) {
		case 2:
			if want := uint64(3*maxEvents - 1); e.Forwards[0].ID != want {
				t.Errorf("heard of set %d: want %d", e.Forwards[0].ID, want)
			}
			v.add(api.Event{Kind: api.EventForwards})
		case 3:
			return enough
		}
		return nil
	})
	if diff := cmp.Diff([]string{api.EventReady, api.EventForwards, api.EventForwards}, got); diff != "" || !errors.Is(err, enough) {
		t.Errorf("%v %s", err, diff)
	}
}

func TestDockerPort(t *testing.T) {
	docker := listen(t)
	go func() {
		for {
			c, err := docker.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	serve := func(t *testing.T, d *dockerPort) *net.UnixConn {
		port := listen(t)
		done := make(chan error, 1)
		go func() { done <- streams(t.Context(), port, maxStreams, d.serve) }()
		t.Cleanup(func() { port.Close(); <-done })
		return dial(t, port)
	}
	ready := make(chan struct{})
	d := &dockerPort{socket: docker.Addr().String(), log: quiet, ready: func(ctx context.Context) error {
		select {
		case <-ready:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}

	t.Run("waits for the engine, then relays", func(t *testing.T) {
		c := serve(t, d)
		if _, err := io.WriteString(c, "early"); err != nil {
			t.Fatal(err)
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(50*time.Millisecond, func() { close(ready) })
		if got, err := io.ReadAll(c); err != nil || string(got) != "early" {
			t.Errorf("came back: %q, %v", got, err)
		}
	})
	refusals := map[string]*dockerPort{
		"down":      {socket: docker.Addr().String(), log: quiet, ready: func(context.Context) error { return service.ErrDown }},
		"no socket": {socket: "/no/such/socket", log: quiet, ready: func(context.Context) error { return nil }},
	}
	for name, d := range refusals {
		t.Run(name, func(t *testing.T) {
			c := serve(t, d)
			client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://docker/info", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var body struct{ Message string }
			if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || resp.StatusCode != 503 || !strings.Contains(body.Message, "Docker is not running") {
				t.Errorf("answer %s, %+v, %v", resp.Status, body, err)
			}
		})
	}
}

func TestApply(t *testing.T) {
	var did []string
	a := newAgent(quiet)
	does := func(name string, value func(api.Spec) string) part {
		return part{name, func(_ context.Context, s api.Spec) error {
			if value(s) == "bad" {
				return errors.New("bad " + name)
			}
			did = append(did, name)
			return nil
		}}
	}
	a.check = func(s api.Spec) error {
		if s.Daemon != nil {
			return errors.New("own key")
		}
		return nil
	}
	a.parts = []part{
		does("host name", func(s api.Spec) string { return s.Hostname }), does("network", func(s api.Spec) string { return s.Network.Address }),
		does("last", func(api.Spec) string { return "" }),
	}
	dockerd := &fakeDockerd{}
	group, err := service.NewGroup(a.report(), service.DefaultPause, service.Unit{Service: dockerd})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	early, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	if err := a.Apply(early, api.Spec{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Apply() before the engine = %v", err)
	}
	if err := a.engineReady(early); err == nil || !strings.Contains(err.Error(), "still starting") {
		t.Errorf("engineReady() before the engine = %v", err)
	}
	wg.Go(func() { group.Run(ctx) })
	a.engineIs(group)
	if err := a.engineReady(ctx); err != nil {
		t.Fatal(err)
	}

	a.refused("network", errors.New("no card"))
	for _, c := range []struct {
		name string
		spec api.Spec
		want []string
		err  string
	}{
		{"refused before anything is done", api.Spec{Daemon: []byte(`{"hosts":[]}`)}, nil, "own key"},
		{"a part fails", api.Spec{Network: api.Network{Address: "bad"}}, []string{"host name"}, "bad network"},
		{"all", api.Spec{}, []string{"host name", "network", "last"}, ""},
	} {
		did = nil
		err := a.Apply(ctx, c.spec)
		if (c.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: Apply() = %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, did); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
	if err := group.Restart(ctx, engine.Dockerd); err != nil {
		t.Fatal(err)
	}

	var network []string
	ready := 0
	enough := errors.New("enough")
	_ = a.Watch(ctx, func(e api.Event) error {
		if e.Name == "network" {
			network = append(network, e.State)
		}
		if e.Kind == api.EventReady {
			ready++
		}
		if ready == 2 {
			return enough
		}
		return nil
	})
	if diff := cmp.Diff([]string{api.ServiceFailed, api.ServiceReady}, network); diff != "" {
		t.Errorf("a part that was refused and then came into force: %s", diff)
	}
	a.Shutdown()
	a.Shutdown() // twice does no harm
	<-a.off
}

type fakeDockerd struct{}

func (f *fakeDockerd) Name() string { return engine.Dockerd }

func (f *fakeDockerd) Run(ctx context.Context, ready func()) error {
	ready()
	<-ctx.Done()
	return nil
}

func TestFail(t *testing.T) {
	a := newAgent(quiet)
	a.fail(errors.New("no data disk"))
	a.fail(errors.New("and more"))
	if err := a.engineReady(t.Context()); err == nil {
		t.Error("a failed guest's engine counts as ready")
	}
	if e := a.events.past[0]; e.Kind != api.EventFailed || e.Detail != "no data disk" {
		t.Errorf("event is %+v", e)
	}
}

func TestServeAPI(t *testing.T) {
	a := newAgent(quiet)
	beneath := listen(t)
	ctx, cancel := context.WithCancel(t.Context())
	p := &port{name: "agent", serve: serveAPI(a, quiet), listen: func() (net.Listener, error) {
		return newGate(beneath, secret, anyone, quiet), nil
	}}
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() { done <- p.Run(ctx, func() { close(started) }) }()
	<-started
	c := api.NewClient(func(ctx context.Context, _ uint32) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", beneath.Addr().String())
	}, secret)
	time.AfterFunc(20*time.Millisecond, func() { close(a.rooted) })
	h, err := c.Hello(t.Context())
	if err != nil || h.Kernel == "" || h.BootID == "" {
		t.Errorf("Hello() = %+v, %v", h, err)
	}
	watching := make(chan error, 1)
	a.events.add(api.Event{Kind: api.EventReady})
	seen := make(chan struct{})
	go func() {
		watching <- c.Watch(t.Context(), func(api.Event) error { close(seen); return nil })
	}()
	<-seen
	cancel()
	if err := <-watching; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the watch ended with %v", err)
	}
	if err := <-done; err == nil {
		t.Error("a closed listener is no error")
	}
}

func TestMain(m *testing.M) {
	reaper = service.NewReaper()
	ctx, cancel := context.WithCancel(context.Background())
	go reaper.Run(ctx)
	code := m.Run()
	cancel()
	os.Exit(code)
}
