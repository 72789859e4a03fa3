//go:build linux

package qemu

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vhostuser/vsock"
)

// guestCID is the vsock address that every guest is given: each machine has a device of its own, so none sees another.
const guestCID = 3

// limits bound what QEMU may take; tests make them short.
type limits struct {
	start time.Duration // from launch to a running guest
	quit  time.Duration // from the order to quit to the end of the process, before it is killed
	retry time.Duration // between two looks for space on a full disk
}

var defaults = limits{start: 30 * time.Second, quit: 3 * time.Second, retry: 2 * time.Second}

// machine is one QEMU process and the devices and the network that it talks to.
type machine struct {
	launch launch
	binary string
	device *vsock.Device
	log    *slog.Logger
	limits limits
	// broken is told that KVM could not run the guest.
	broken func()

	mu      sync.Mutex
	state   vm.State // Stopped until Start, then Starting, Running, Stopped
	over    bool     // no Start any more
	stopped bool     // Stop was called
	proc    *process
	mon     *monitor
	events  events
	err     error         // what Wait returns
	done    chan struct{} // closed when all has ended
}

// Start launches QEMU, meets its monitor and lets the virtual CPUs run.
func (m *machine) Start(ctx context.Context) error {
	if err := m.begin(ctx); err != nil {
		return fmt.Errorf("start QEMU: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, m.limits.start)
	defer cancel()
	err := m.mon.handshake(ctx)
	if err == nil {
		err = m.mon.execute(ctx, "cont", nil)
	}
	if err != nil {
		return fmt.Errorf("start QEMU: %w", m.giveUp(err))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.over { // a guest may have been that quick: Wait tells
		m.state = vm.Running
	}
	return nil
}

// begin makes the process and what belongs to it; supervise ends them.
func (m *machine) begin(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.over:
		return fmt.Errorf("it has ended before: %w", vm.ErrNotRunning)
	case m.state != vm.Stopped:
		return vm.ErrRunning
	}
	err := ctx.Err()
	if err == nil {
		err = m.spawn()
	}
	if err != nil {
		m.over = true
		m.device.Close()
		close(m.done)
		return err
	}
	m.state = vm.Starting
	return nil
}

// spawn is begin's work; m.mu is held.
func (m *machine) spawn() error {
	w, err := m.launch.lay()
	if err != nil {
		return err
	}
	defer w.release()
	words := m.launch.args()
	m.log.Debug("launch QEMU", "binary", m.binary, "args", words)
	proc, err := run(m.binary, words, append(w.far, m.launch.cfg.KeepOpen...))
	if err != nil {
		w.cut()
		return err
	}
	m.proc = proc
	m.events.paused, m.events.internal = make(chan struct{}, 1), make(chan struct{}, 1)
	m.mon = newMonitor(w.monitor, m.event)
	go m.supervise(w)
	return nil
}

// giveUp ends a QEMU that did not get to run because of err, and says why in the words that help most.
func (m *machine) giveUp(err error) error {
	select {
	case <-m.mon.done: // it goes by itself: its own words say why
		<-m.done
	default:
	}
	select {
	case <-m.proc.done:
		<-m.done
		e := m.ending()
		if e.stopped {
			return fmt.Errorf("stopped while it started: %w", vm.ErrNotRunning)
		}
		if e.stderr == "" {
			return fmt.Errorf("%w: %w (%s)", vm.ErrCrashed, err, e.complaint())
		}
		return e.startError()
	default:
		m.proc.kill()
		<-m.done
		return fmt.Errorf("%w (it was ended)%s", err, suffix(m.proc.stderr.String()))
	}
}

func suffix(stderr string) string {
	if stderr == "" {
		return ""
	}
	return ": " + stderr
}

// supervise serves the devices, the network and the events until the process has ended, then ends all that belongs to it.
func (m *machine) supervise(w *wires) {
	ctx, cancel := context.WithCancel(context.Background())
	var parts sync.WaitGroup
	w.serve(ctx, &parts, m.launch.cfg, m.device, m.log)
	parts.Go(func() { m.attend(ctx) })
	m.awaitEnd()
	m.mon.close()
	cancel()
	m.device.Close()
	parts.Wait()

	verdict := m.ending().verdict()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.over, m.state, m.err = true, vm.Stopped, verdict
	close(m.done)
}

// awaitEnd returns when the process has ended and its last event is read. A process that lives on without a monitor is
// beyond control, so it is killed.
func (m *machine) awaitEnd() {
	select {
	case <-m.proc.done:
		select {
		case <-m.mon.done:
		case <-time.After(m.limits.quit):
		}
	case <-m.mon.done:
		select {
		case <-m.proc.done:
		case <-time.After(m.limits.quit):
			m.log.Error("QEMU lost its monitor and is killed", "error", m.mon.err)
			m.proc.kill()
			<-m.proc.done
		}
	}
}

// ending is what is known of the process's end, after it.
func (m *machine) ending() ending {
	m.mu.Lock()
	defer m.mu.Unlock()
	return ending{
		stopped: m.stopped, reason: m.events.shutdown, internal: m.events.gaveUp,
		exit: m.proc.err, stderr: m.proc.stderr.String(), console: m.launch.cfg.Console,
	}
}

// Stop orders QEMU to quit, and kills it if it does not.
func (m *machine) Stop(ctx context.Context) error {
	m.mu.Lock()
	running := m.state == vm.Running
	switch {
	case m.state == vm.Stopped && !m.over:
		m.over = true
		m.device.Close()
		close(m.done)
	case !m.over:
		m.stopped = true
	}
	proc := m.proc
	m.mu.Unlock()
	if proc != nil {
		m.end(ctx, running)
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop QEMU: %w", ctx.Err())
	}
}

func (m *machine) end(ctx context.Context, politely bool) {
	if politely {
		ctx, cancel := context.WithTimeout(ctx, m.limits.quit)
		defer cancel()
		if err := m.mon.execute(ctx, "quit", nil); err == nil {
			select {
			case <-m.proc.done:
			case <-ctx.Done():
			}
		}
	}
	select {
	case <-m.proc.done:
	default:
		m.proc.kill()
	}
}

// Wait blocks until all has ended.
func (m *machine) Wait() error {
	m.mu.Lock()
	launched := m.proc != nil
	m.mu.Unlock()
	if !launched {
		return fmt.Errorf("wait for QEMU: %w", vm.ErrNotRunning)
	}
	<-m.done
	return m.err
}

// Dial opens a stream to a port of the guest.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if m.ended() {
		return nil, fmt.Errorf("dial guest port %d: %w", port, vm.ErrNotRunning)
	}
	c, err := m.device.Dial(ctx, port)
	if err != nil && m.ended() {
		return nil, fmt.Errorf("dial guest port %d: %w", port, vm.ErrNotRunning)
	}
	return c, err
}

// Listen accepts streams that the guest opens to a port of ours.
func (m *machine) Listen(port uint32) (net.Listener, error) {
	if m.ended() {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, vm.ErrNotRunning)
	}
	return m.device.Listen(port)
}

func (m *machine) ended() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

// Console is the file that the guest's first serial port is appended to.
func (m *machine) Console() string { return m.launch.cfg.Console }
