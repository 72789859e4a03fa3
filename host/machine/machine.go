// Package machine is the state machine of one machine: it puts the steps from "start" to "gone" in order, decides what a
// failure of each means, and tells whoever watches. It does no work of its own: files come from host/image, the virtual
// machine from a vm.Driver, the guest is reached through guest/api, and all of them arrive through Config. Its neighbours
// above are host/server and host/dockerproxy.
//
// States are walked in one direction: starting, running, stopping, and stopped or failed at the end. A Machine is for one
// life; the next start is another process.
package machine

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/vm"
)

// Files is what has to lie on the host's disk before a boot.
type Files interface {
	// Image verifies the guest image and returns it.
	Image(ctx context.Context) (Assets, error)
	// Disk makes the data disk size bytes large and returns its path.
	Disk(size int64) (string, error)
	// Initrd writes the initramfs with boot in it and returns its path.
	Initrd(boot guestapi.Boot) (string, error)
	// Booted removes the initramfs: the guest has it.
	Booted()
}

// Assets is a guest image and the paths of its files.
type Assets struct {
	api.Image
	Kernel string
	// Unpacked is the same kernel, already decompressed; empty where the image has none. A guest that is emulated boots it
	// a second sooner. Its addresses are not randomised (no KASLR), which is why a guest that runs on the processor itself
	// and decompresses in no time boots Kernel.
	Unpacked string
	Root     string
}

// Selector makes the machine known to docker's own command line, and takes it back.
type Selector interface {
	Set() error
	Unset() error
}

// Timeouts bound what another may keep us waiting for.
type Timeouts struct {
	Boot     time.Duration // from the virtual machine's start to the guest's first sign
	Engine   time.Duration // from there to the Engine API's answer
	Shutdown time.Duration // for an orderly end
	Death    time.Duration // from a broken stream to the news that the hypervisor is dead
}

// DefaultTimeouts leave room for a guest without hardware support on a busy host.
var DefaultTimeouts = Timeouts{Boot: 3 * time.Minute, Engine: 3 * time.Minute, Shutdown: guestapi.ShutdownTime, Death: 2 * time.Second}

// Config is what a machine is made of.
type Config struct {
	Name         string
	Since        time.Time // when the start was asked for: steps count from it
	Drivers      []vm.Driver
	VM           vm.Config // what does not depend on settings and image
	Settings     func() (api.Settings, error)
	Files        Files
	Around       Around
	Docker       Selector // nil: docker's own settings are not touched
	DockerSocket string
	ContextName  string                      // what Docker selects
	Ping         func(context.Context) error // asks the Engine API through the machine's Docker socket
	Explain      func(error) *api.Error
	Save         func(api.Status) // keeps the status for when this process is gone; called at each change of state
	Log          *slog.Logger
	Timeouts     Timeouts
}

// Machine is one machine, from New to the end of Run. Its methods may be called from several goroutines.
type Machine struct {
	cfg    Config
	events events

	stop   chan struct{} // closed: end in order
	force  chan struct{} // closed: end at once
	engine chan struct{} // closed: the Engine API answers, guest is set
	ended  chan struct{} // closed: the virtual machine is on its way out

	applying sync.Mutex // held by Apply

	mu     sync.Mutex
	status api.Status
	guest  *guestapi.Client
}

// New makes a machine that has not started.
func New(cfg Config) *Machine {
	return &Machine{
		cfg:  cfg,
		stop: make(chan struct{}), force: make(chan struct{}), engine: make(chan struct{}), ended: make(chan struct{}),
		status: api.Status{Name: cfg.Name, State: api.Stopped, PID: os.Getpid(), Started: cfg.Since, DockerSocket: cfg.DockerSocket},
	}
}

// errStopped ends a start that is no longer wanted.
var errStopped = errors.New("machine was stopped")

// Run starts the machine and returns when it has ended: nil after Stop, the end of ctx (which is an orderly stop too) or
// the guest's own power-off; else what the machine failed with. It is called once.
func (m *Machine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wait sync.WaitGroup
	defer wait.Wait()
	defer cancel(nil)
	wait.Go(func() {
		select {
		case <-m.stop:
			cancel(errStopped)
		case <-ctx.Done():
		}
	})
	m.step("launch", m.cfg.Since)
	m.enter(api.Starting)
	b, err := m.start(ctx)
	if err == nil {
		err = m.running(ctx, b)
	}
	if ctx.Err() != nil && !errors.Is(err, vm.ErrCrashed) {
		err = nil // whatever broke, broke because it was told to end
	}
	if err != nil {
		m.fail(err)
	}
	close(m.ended)
	if b != nil {
		died := m.end(b)
		if err == nil && died != nil { // not in order: what it was about to write may be lost
			err = died
			m.fail(err)
		}
	}
	m.cfg.Files.Booted() // where it never did
	m.unselect()
	if err != nil {
		m.enter(api.Failed)
	} else {
		m.enter(api.Stopped)
	}
	m.events.close()
	return err
}

// running goes from the engine's first answer to the reason to end: nil where it was asked for.
func (m *Machine) running(ctx context.Context, b *boot) error {
	m.mu.Lock()
	m.status.Ready = time.Now()
	services := slices.Clone(m.status.Services)
	m.mu.Unlock()
	for _, s := range services { // the machine is up, and something that was asked for is not
		if s.State == guestapi.ServiceFailed {
			m.note(s.Name + ": " + s.Detail)
		}
	}
	m.enter(api.Running)
	m.progress("ready")
	select {
	case <-ctx.Done():
		return nil
	case err := <-b.failed:
		return err
	case <-b.exited:
		return b.exitErr // nil: the guest powered itself off
	}
}

// end brings the virtual machine down, in order where the guest can still be asked. The error is why it died meanwhile, or
// had died before.
func (m *Machine) end(b *boot) error {
	defer b.wait()
	if b.vm == nil {
		return nil
	}
	if b.hasExited() {
		return b.exitErr
	}
	m.enter(api.Stopping)
	ctx, cancel := context.WithTimeout(context.Background(), m.cfg.Timeouts.Shutdown)
	defer cancel()
	if m.askShutdown(ctx, b) {
		m.progress("waiting for containers and disks to come to rest")
		select {
		case <-b.exited:
			return b.exitErr
		case <-m.force:
		case <-ctx.Done():
			m.cfg.Log.Warn("the guest did not shut down in time: pulling its plug", "timeout", m.cfg.Timeouts.Shutdown)
		}
	}
	if err := b.vm.Stop(context.Background()); err != nil {
		m.cfg.Log.Error("stop virtual machine", "err", err)
	}
	<-b.exited
	return b.exitErr
}

// askShutdown is whether the guest has taken the order.
func (m *Machine) askShutdown(ctx context.Context, b *boot) bool {
	if b.guest == nil {
		return false // not up yet: nothing runs that could be hurt
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-m.force:
			cancel()
		case <-stop:
		}
	}()
	if err := b.guest.Shutdown(ctx); err != nil {
		m.cfg.Log.Warn("the guest cannot be asked to shut down: pulling its plug", "err", err)
		return false
	}
	return true
}

// Stop begins the end and returns at once: in order, or with force by pulling the plug. It may be called at any time and
// again; force may follow where order takes too long.
func (m *Machine) Stop(force bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	closeOnce(m.stop)
	if force {
		closeOnce(m.force)
	}
}

// closeOnce is for callers that hold the lock.
func closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

// DialDocker opens a stream to the Engine API. While the machine starts it waits for the engine, at most as long as ctx.
func (m *Machine) DialDocker(ctx context.Context) (net.Conn, error) {
	return m.dial(ctx, guestapi.PortDocker)
}

// DialShell opens a stream of guest/api's shell frames.
func (m *Machine) DialShell(ctx context.Context) (net.Conn, error) {
	return m.dial(ctx, guestapi.PortShell)
}

func (m *Machine) dial(ctx context.Context, port uint32) (net.Conn, error) {
	select {
	case <-m.ended:
		return nil, m.gone()
	default:
	}
	select {
	case <-m.ended:
		return nil, m.gone()
	case <-ctx.Done():
		return nil, api.Errorf(api.CodeGuestTimeout, "machine %q is still starting: the Docker Engine does not answer yet", m.cfg.Name)
	case <-m.engine:
	}
	m.mu.Lock()
	guest := m.guest
	m.mu.Unlock()
	conn, err := guest.Dial(ctx, port)
	if err != nil {
		return nil, m.cfg.Explain(fmt.Errorf("reach machine %q: %w", m.cfg.Name, err))
	}
	return conn, nil
}

// gone is why nobody can be reached any more.
func (m *Machine) gone() error {
	if st := m.Status(); st.Error != nil {
		return &api.Error{Code: st.Error.Code, Message: fmt.Sprintf("machine %q failed: %s", m.cfg.Name, st.Error.Message), Hint: st.Error.Hint}
	}
	return api.Errorf(api.CodeNotRunning, "machine %q is stopping", m.cfg.Name)
}

// Status is how the machine is now.
func (m *Machine) Status() api.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.status
	st.Services = slices.Clone(st.Services)
	m.cfg.Around.Report(&st)
	return st
}

// Watch calls f with every event so far and then with each new one, until the machine has ended (nil), ctx does or f fails.
func (m *Machine) Watch(ctx context.Context, f func(api.Event) error) error {
	return m.events.watch(ctx, f)
}

func (m *Machine) enter(s api.State) {
	m.mu.Lock()
	m.status.State = s
	m.mu.Unlock()
	m.cfg.Log.Info("state", "state", s)
	m.cfg.Save(m.Status())
	m.events.publish(api.Event{Kind: api.EventState, State: s})
}

func (m *Machine) fail(err error) {
	e := m.cfg.Explain(err)
	m.mu.Lock()
	m.status.Error = e
	m.mu.Unlock()
	m.cfg.Log.Error("machine failed", "code", e.Code, "err", err)
	m.events.publish(api.Event{Kind: api.EventError, Error: e})
}

func (m *Machine) progress(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	m.cfg.Log.Info("progress", "text", text)
	m.events.publish(api.Event{Kind: api.EventProgress, Text: text})
}

// step tells that a step of ours, which began at start, has ended.
func (m *Machine) step(name string, start time.Time) {
	m.publishStep(api.Step{Name: name, Where: "host", Start: start.Sub(m.cfg.Since), End: time.Since(m.cfg.Since)})
}

func (m *Machine) publishStep(s api.Step) {
	m.cfg.Log.Debug("step", "where", s.Where, "name", s.Name, "start", s.Start, "end", s.End)
	m.events.publish(api.Event{Kind: api.EventStep, Step: &s})
}

// selectContext may fail without harm: the user is told and can do without.
func (m *Machine) selectContext() {
	if m.cfg.Docker == nil {
		return
	}
	if err := m.cfg.Docker.Set(); err != nil {
		m.cfg.Log.Warn("docker context", "err", err)
		m.note("docker context: " + err.Error())
		return
	}
	m.mu.Lock()
	m.status.Context = m.cfg.ContextName
	m.mu.Unlock()
}

func (m *Machine) note(text string) {
	m.mu.Lock()
	m.status.Note = strings.TrimPrefix(m.status.Note+"; "+text, "; ")
	m.mu.Unlock()
	m.cfg.Log.Info("note", "text", text)
}

// unselect also takes back what an earlier, killed process left.
func (m *Machine) unselect() {
	if m.cfg.Docker == nil {
		return
	}
	if err := m.cfg.Docker.Unset(); err != nil {
		m.cfg.Log.Warn("docker context", "err", err)
	}
	m.mu.Lock()
	m.status.Context = ""
	m.mu.Unlock()
}
