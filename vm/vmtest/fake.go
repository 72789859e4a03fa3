// Package vmtest holds the two things that keep drivers honest: a fake vm.Driver whose machines run in this process on
// socket pairs, for the unit tests of everything above vm, and Run, the conformance suite that every driver must pass, the
// fake included. Behave is the guest's half of the suite: the fake runs it as a function, a real driver boots it as the
// init of vm/vmtest/testguest.
package vmtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/coracle-engine/coracle/vm"
)

// Driver is the fake. Its zero value but for Guest is ready for use.
type Driver struct {
	// Guest is the program that every machine boots. Its transport is not up until it calls Guest.Up. When it returns nil
	// the machine powers off, when it returns an error the machine crashes with it. ctx ends with the machine.
	Guest func(ctx context.Context, g *Guest) error
	// ProbeErr, OpenErr and StartErr, where set, are what Probe, Open and Start return.
	ProbeErr, OpenErr, StartErr error
}

// Name is "fake".
func (d *Driver) Name() string { return "fake" }

// Probe returns ProbeErr.
func (d *Driver) Probe(ctx context.Context) (vm.Capabilities, error) {
	return vm.Capabilities{Accelerator: "none", Version: "0", Reason: "it is a fake", FileSystem: true, Console: true, Notify: true}, d.ProbeErr
}

// Open makes a machine. Of cfg only Name, Console, Memory, FileSystem and Network.Frames matter; they are not checked.
func (d *Driver) Open(ctx context.Context, cfg vm.Config) (vm.Machine, error) {
	if d.OpenErr != nil {
		return nil, d.OpenErr
	}
	m := &machine{
		driver: d, cfg: cfg, up: make(chan struct{}), done: make(chan struct{}),
		guest: ports{}, host: ports{}, conns: map[net.Conn]struct{}{},
	}
	return m, nil
}

type ports map[uint32]*listener

type machine struct {
	driver *Driver
	cfg    vm.Config
	wg     sync.WaitGroup // the guest's program, and what answers its cable
	cable  net.Conn       // the guest's end, nil for none; set before the guest runs

	mu      sync.Mutex
	started bool
	ended   bool // the machine has ended, or was stopped before it started
	cancel  context.CancelFunc
	err     error                 // what Wait returns
	guest   ports                 // listeners in the guest
	host    ports                 // listeners on the host
	conns   map[net.Conn]struct{} // the guest's end of each stream
	notify  func(vm.Event)
	up      chan struct{} // closed by Guest.Up
	done    chan struct{} // closed when the machine has ended
}

func (m *machine) Start(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.started:
		return fmt.Errorf("start fake machine: %w", vm.ErrRunning)
	case m.ended:
		return fmt.Errorf("start fake machine after its end: %w", vm.ErrNotRunning)
	case ctx.Err() != nil:
		m.endLocked()
		return fmt.Errorf("start fake machine: %w", ctx.Err())
	case m.driver.StartErr != nil:
		m.endLocked()
		return m.driver.StartErr
	}
	guestCtx, cancel := context.WithCancel(context.Background())
	if err := m.plug(guestCtx); err != nil {
		cancel()
		m.endLocked()
		return fmt.Errorf("start fake machine: %w", err)
	}
	m.started = true
	m.cancel = cancel
	m.wg.Add(1)
	go m.run(guestCtx)
	return nil
}

// plug has the cable answered, where there is one.
func (m *machine) plug(ctx context.Context) error {
	if m.cfg.Network.Frames == nil {
		return nil
	}
	near, far, err := pair()
	if err != nil {
		return err
	}
	m.cable = far
	m.conns[far] = struct{}{}
	m.wg.Go(func() {
		defer near.Close()
		m.cfg.Network.Frames(ctx, near)
	})
	return nil
}

// run is the machine's life.
func (m *machine) run(ctx context.Context) {
	defer m.wg.Done()
	err := m.driver.Guest(ctx, &Guest{m: m})
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", vm.ErrCrashed, err)
	} else {
		err = nil
	}
	if m.cfg.FileSystem != nil {
		m.cfg.FileSystem.Reset()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
	m.cancel()
	m.endLocked()
}

// endLocked closes all that ends with the machine. It may be called twice.
func (m *machine) endLocked() {
	if m.ended {
		return
	}
	m.ended = true
	for _, set := range []ports{m.guest, m.host} {
		for _, l := range set {
			l.end()
		}
		clear(set)
	}
	for c := range m.conns {
		c.Close()
	}
	clear(m.conns)
	close(m.done)
}

func (m *machine) Stop(ctx context.Context) error {
	m.mu.Lock()
	if !m.started {
		m.endLocked()
	} else {
		m.cancel()
		for c := range m.conns { // what the plug does to a guest that waits on a stream
			c.Close()
		}
	}
	m.mu.Unlock()
	select {
	case <-m.done:
		m.wg.Wait()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop fake machine: %w", ctx.Err())
	}
}

func (m *machine) Wait() error {
	m.mu.Lock()
	started := m.started
	m.mu.Unlock()
	if !started {
		return fmt.Errorf("wait for fake machine: %w", vm.ErrNotRunning)
	}
	<-m.done
	m.wg.Wait()
	return m.err
}

func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	select {
	case <-m.up:
	case <-m.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("dial guest port %d: %w", port, ctx.Err())
	}
	return m.connect(m.guest, port, "guest")
}

// connect makes a stream to a port of one side and returns the other side's end.
func (m *machine) connect(to ports, port uint32, side string) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return nil, fmt.Errorf("dial %s port %d: %w", side, port, vm.ErrNotRunning)
	}
	l := to[port]
	if l == nil {
		return nil, fmt.Errorf("dial %s port %d: %w", side, port, vm.ErrRefused)
	}
	near, far, err := pair()
	if err != nil {
		return nil, fmt.Errorf("dial %s port %d: %w", side, port, err)
	}
	if !l.offer(far) {
		near.Close()
		far.Close()
		return nil, fmt.Errorf("dial %s port %d: backlog is full: %w", side, port, vm.ErrRefused)
	}
	if side == "guest" {
		m.conns[far] = struct{}{}
	} else {
		m.conns[near] = struct{}{}
	}
	return near, nil
}

func (m *machine) Listen(port uint32) (net.Listener, error) { return m.listen(m.host, port, "host") }

func (m *machine) listen(on ports, port uint32, side string) (net.Listener, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return nil, fmt.Errorf("listen on %s port %d: %w", side, port, vm.ErrNotRunning)
	}
	if on[port] != nil {
		return nil, fmt.Errorf("listen on %s port %d: %w", side, port, vm.ErrPortInUse)
	}
	l := &listener{port: port, queue: make(chan net.Conn, 256), done: make(chan struct{})}
	l.release = func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if on[port] == l {
			delete(on, port)
		}
		l.end()
	}
	on[port] = l
	return l, nil
}

func (m *machine) Console() string { return m.cfg.Console }

func (m *machine) Notify(f func(vm.Event)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.notify = f
}

// Guest is a fake machine as its guest's program sees it: the System of Behave and a little more.
type Guest struct{ m *machine }

// Config is what the machine was opened with.
func (g *Guest) Config() vm.Config { return g.m.cfg }

// Up brings the guest's transport up: from now on Dial is answered. It may be called twice.
func (g *Guest) Up() {
	g.m.mu.Lock()
	defer g.m.mu.Unlock()
	select {
	case <-g.m.up:
	default:
		close(g.m.up)
	}
}

// Listen accepts streams that the host opens.
func (g *Guest) Listen(port uint32) (net.Listener, error) {
	return g.m.listen(g.m.guest, port, "guest")
}

// Dial opens a stream to a port that the host listens on.
func (g *Guest) Dial(port uint32) (net.Conn, error) { return g.m.connect(g.m.host, port, "host") }

// Handle serves port with f, each stream in a goroutine of its own, until ctx ends; it closes what f leaves open and
// returns at once. An error is a port that is taken.
func (g *Guest) Handle(ctx context.Context, port uint32, f func(net.Conn)) error {
	l, err := g.Listen(port)
	if err != nil {
		return err
	}
	g.m.wg.Add(1)
	go func() {
		defer g.m.wg.Done()
		serve(ctx, l, func(_ context.Context, c net.Conn) { f(c) })
	}()
	return nil
}

// Event has the machine's owner notified.
func (g *Guest) Event(e vm.Event) {
	g.m.mu.Lock()
	f := g.m.notify
	g.m.mu.Unlock()
	if f != nil {
		f(e)
	}
}

// Print appends a line to the machine's console, where it has one.
func (g *Guest) Print(line string) error {
	if g.m.cfg.Console == "" {
		return nil
	}
	f, err := os.OpenFile(g.m.cfg.Console, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open console: %w", err)
	}
	_, err = fmt.Fprintln(f, line)
	return errors.Join(err, f.Close())
}

// Logger is a logger for tests: it writes to nothing unless verbose is set, then to standard error.
func Logger(verbose bool) *slog.Logger {
	if verbose {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}
