package vmtest

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm"
)

// Subject is a driver under test.
type Subject struct {
	Driver vm.Driver
	// Config makes the configuration of a fresh machine whose guest runs Behave. It is called once per machine.
	Config func(t *testing.T) vm.Config
	// Boot bounds the time from Start to the guest's connection to PortReady.
	Boot time.Duration
	// Settle bounds how long goroutines and descriptors may take to go after the last machine.
	Settle time.Duration
}

// Run holds the driver to the contract in package vm. It boots four machines at most, two of them at once.
func Run(t *testing.T, s Subject) {
	before := takeStock()
	t.Run("before start", s.beforeStart)
	t.Run("capabilities", s.capabilities)
	t.Run("start cancelled", s.startCancelled)
	t.Run("stop at once", s.stopAtOnce)
	t.Run("streams", s.streams)
	t.Run("carries", s.carries)
	t.Run("two machines", s.twoMachines)
	t.Run("nothing leaks", func(t *testing.T) { before.compare(t, s.Settle) })
}

func (s Subject) open(t *testing.T) (vm.Machine, vm.Config) {
	t.Helper()
	cfg := s.Config(t)
	m, err := s.Driver.Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := m.Stop(ctx); err != nil {
			t.Errorf("stop at the end of the test: %v", err)
		}
	})
	return m, cfg
}

// boot makes a machine and returns when its guest behaves.
func (s Subject) boot(t *testing.T) (vm.Machine, vm.Config) {
	t.Helper()
	m, cfg := s.open(t)
	ready := listen(t, m, PortReady)
	defer ready.Close()
	ctx, cancel := context.WithTimeout(t.Context(), s.Boot)
	defer cancel()
	begin := time.Now()
	if err := m.Start(ctx); err != nil {
		t.Fatalf("start: %v", err)
	}
	stop := context.AfterFunc(ctx, func() { ready.Close() })
	defer stop()
	c, err := ready.Accept()
	if err != nil {
		t.Fatalf("guest did not connect within %v: %v; its console:\n%s", s.Boot, err, console(m))
	}
	c.Close()
	t.Logf("guest behaves %v after Start was called", time.Since(begin).Round(time.Millisecond))
	return m, cfg
}

func console(m vm.Machine) string {
	if c, ok := m.(vm.Consoler); ok {
		b, _ := os.ReadFile(c.Console())
		return string(b[max(0, len(b)-4096):])
	}
	return "(none)"
}

func listen(t *testing.T, m vm.Machine, port uint32) net.Listener {
	t.Helper()
	l, err := m.Listen(port)
	if err != nil {
		t.Fatalf("listen on port %d: %v", port, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func dial(t *testing.T, m vm.Machine, port uint32) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := m.Dial(ctx, port)
	if err != nil {
		t.Fatalf("dial port %d: %v", port, err)
	}
	t.Cleanup(func() { c.Close() })
	if _, ok := c.(vm.CloseWriter); !ok {
		t.Fatalf("dial port %d: %T has no CloseWrite", port, c)
	}
	return c
}

func want(t *testing.T, what string, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%s: error %v, want one of class %q", what, err, class)
	}
}

func (s Subject) beforeStart(t *testing.T) {
	m, _ := s.open(t)
	want(t, "wait before start", m.Wait(), vm.ErrNotRunning)

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := m.Dial(ctx, PortEcho)
	want(t, "dial before the guest is up", err, context.DeadlineExceeded)
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("dial before the guest is up: took %v, its context 50 ms", d)
	}

	l := listen(t, m, PortReport)
	_, err = m.Listen(PortReport)
	want(t, "listen twice", err, vm.ErrPortInUse)
	if err := l.Close(); err != nil {
		t.Errorf("close listener: %v", err)
	}
	l = listen(t, m, PortReport) // free again

	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	for range 2 {
		if err := m.Stop(t.Context()); err != nil {
			t.Errorf("stop before start: %v", err)
		}
	}
	if err := within(t, "accept to end with the machine", accepted); err == nil {
		t.Error("accept after the machine's end: no error")
	}
	want(t, "wait after stop without start", m.Wait(), vm.ErrNotRunning)
	if err := m.Start(t.Context()); err == nil {
		t.Error("start after stop: no error, but a stopped machine stays stopped")
	}
	_, err = m.Dial(t.Context(), PortEcho)
	want(t, "dial after stop", err, vm.ErrNotRunning)
}

// within is the next of c, which has 20 s to come.
func within[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("waited 20 s for %s", what)
		panic("not reached")
	}
}

func (s Subject) capabilities(t *testing.T) {
	caps, err := s.Driver.Probe(t.Context())
	if err != nil {
		t.Fatalf("probe: %v", err)
	}
	t.Logf("%s: %+v", s.Driver.Name(), caps)
	if caps.Accelerator == "" || caps.Version == "" || s.Driver.Name() == "" {
		t.Errorf("%q: accelerator %q, version %q: want all three named", s.Driver.Name(), caps.Accelerator, caps.Version)
	}
	m, cfg := s.open(t)
	_, suspends := m.(vm.Suspender)
	_, shares := m.(vm.Sharer)
	_, sets := m.(vm.MemorySetter)
	consoler, consoles := m.(vm.Consoler)
	_, notifies := m.(vm.Notifier)
	for _, c := range []struct {
		name      string
		flag, has bool
	}{
		{"Suspend", caps.Suspend, suspends}, {"Share", caps.Share, shares}, {"SetMemory", caps.SetMemory, sets},
		{"Console", caps.Console, consoles}, {"Notify", caps.Notify, notifies},
	} {
		if c.flag != c.has {
			t.Errorf("Capabilities.%s is %v, but whether the machine has the interface is %v", c.name, c.flag, c.has)
		}
	}
	if consoles && consoler.Console() != cfg.Console {
		t.Errorf("console is %q, want %q", consoler.Console(), cfg.Console)
	}
}

func (s Subject) startCancelled(t *testing.T) {
	m, _ := s.open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	want(t, "start with an ended context", m.Start(ctx), context.Canceled)
	if err := m.Start(t.Context()); err == nil {
		t.Error("start a second time: no error")
	}
	_, err := m.Dial(t.Context(), PortEcho)
	want(t, "dial after a failed start", err, vm.ErrNotRunning)
}

func (s Subject) stopAtOnce(t *testing.T) {
	m, _ := s.open(t)
	if err := m.Start(t.Context()); err != nil {
		t.Fatalf("start: %v", err)
	}
	dialed := make(chan error, 1)
	go func() {
		c, err := m.Dial(context.Background(), PortEcho)
		if err == nil { // a guest that was that fast
			_, err = io.ReadFull(c, make([]byte, 1))
			c.Close()
		}
		dialed <- err
	}()
	waited := make(chan error, 2)
	for range 2 {
		go func() { waited <- m.Wait() }()
	}
	var stops sync.WaitGroup
	for range 2 {
		stops.Go(func() {
			if err := m.Stop(t.Context()); err != nil {
				t.Errorf("stop: %v", err)
			}
		})
	}
	stops.Wait()
	for range 2 {
		if err := within(t, "wait to return", waited); err != nil {
			t.Errorf("wait after stop: %v, want nil", err)
		}
	}
	if err := within(t, "a dial to end with the machine", dialed); err == nil {
		t.Error("dial on a machine that was stopped: no error")
	}
	if err := m.Wait(); err != nil {
		t.Errorf("wait once more: %v, want nil", err)
	}
}

// twoMachines boots two at once, on the same ports: the one powers off while the other goes on, then crashes.
func (s Subject) twoMachines(t *testing.T) {
	a, cfg := s.boot(t)
	b, _ := s.boot(t)
	if c, ok := a.(vm.Consoler); ok {
		if info, err := os.Stat(cfg.Console); err != nil || info.Size() == 0 {
			t.Errorf("console file %s of a booted machine is empty or missing: %v", c.Console(), err)
		}
	}
	want(t, "start a running machine", a.Start(t.Context()), vm.ErrRunning)
	listener := listen(t, a, PortReport)
	idle := dial(t, a, PortStall)
	other := dial(t, b, PortEcho)

	dial(t, a, PortOff)
	waited := make(chan error, 1)
	go func() { waited <- a.Wait() }()
	if err := within(t, "the guest to power off", waited); err != nil {
		t.Errorf("wait after the guest's power-off: %v, want nil", err)
	}
	s.ended(t, a, listener, idle)
	if err := ping(other); err != nil {
		t.Errorf("echo on the other machine: %v", err)
	}

	dial(t, b, PortCrash)
	go func() { waited <- b.Wait() }()
	want(t, "wait after the guest's crash", within(t, "the guest to crash", waited), vm.ErrCrashed)
	s.ended(t, b, nil, other)
}

// ended checks what must hold of a machine that has ended, and of what was open on it.
func (s Subject) ended(t *testing.T, m vm.Machine, l net.Listener, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read after the machine's end: %d bytes, error %v; want an end", n, err)
	}
	if l != nil {
		accepted := make(chan error, 1)
		go func() {
			_, err := l.Accept()
			accepted <- err
		}()
		if within(t, "accept to end", accepted) == nil {
			t.Error("accept after the machine's end: no error")
		}
	}
	_, err := m.Dial(t.Context(), PortEcho)
	want(t, "dial after the end", err, vm.ErrNotRunning)
	if _, err := m.Listen(PortNobody); err == nil {
		t.Error("listen after the end: no error")
	}
	first := m.Wait()
	if err := m.Stop(t.Context()); err != nil {
		t.Errorf("stop after the end: %v", err)
	}
	if again := m.Wait(); again != first {
		t.Errorf("wait changed its answer from %v to %v", first, again)
	}
}
