package machine

import (
	"context"
	"errors"
	"net"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/vm"
)

// Around is what a machine has on the host beside its hypervisor: the directories it shares, its network and its ports. Its
// methods may be called from several goroutines.
type Around interface {
	// Prepare puts the host's part of s into force and returns the guest's. Where it fails, what was in force still is.
	Prepare(ctx context.Context, s api.Settings) (guestapi.Spec, error)
	// Attach gives the virtual machine its file system and its network.
	Attach(cfg *vm.Config)
	// Serve serves the guest of one boot until ctx ends.
	Serve(ctx context.Context, g Guest)
	// Publish makes list what is open on the host and returns what became of each.
	Publish(ctx context.Context, list []guestapi.Forward) []guestapi.Publication
	// Report adds to st what is shared and published.
	Report(st *api.Status)
}

// Guest is what Around may use of a running guest.
type Guest struct {
	Dial   func(ctx context.Context, port uint32) (net.Conn, error) // greeted
	SSH    net.Listener                                             // of guestapi.PortSSH; peers have yet to greet
	Secret []byte
	Woke   func() // says that the host slept, or that its clock jumped; it never blocks
}

// syncTime bounds one attempt to set the guest's clock.
const syncTime = 10 * time.Second

// setTime sets the guest's clock; the guest of a machine that ends meanwhile needs none.
func (m *Machine) setTime(ctx context.Context, b *boot, why string) {
	ctx, cancel := context.WithTimeout(ctx, syncTime)
	defer cancel()
	began := time.Now()
	doubt, err := b.guest.SyncTime(ctx)
	if err != nil {
		if ctx.Err() == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
			m.cfg.Log.Warn("set guest's clock", "why", why, "err", err)
		}
		return
	}
	m.cfg.Log.Debug("guest's clock is set", "why", why, "took", time.Since(began), "doubt", doubt)
}

// driftTime is how long two clocks are let run side by side: a guest's is wrong by some 10 ms after it.
const driftTime = 10 * time.Minute

// keepTime sets the guest's clock whenever somebody says that it may have fallen behind, and now and then.
func (m *Machine) keepTime(ctx context.Context, b *boot) {
	drift := time.NewTicker(driftTime)
	defer drift.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-drift.C:
			m.setTime(ctx, b, "clocks drift apart")
		case why := <-b.woke:
			m.setTime(ctx, b, why)
		}
	}
}

// mayLag asks for the clock to be set; it never blocks.
func (b *boot) mayLag(why string) {
	select {
	case b.woke <- why:
	default: // one is waiting already
	}
}

// serve begins all that a guest has around it, once it has answered.
func (m *Machine) serve(ctx context.Context, b *boot) {
	b.tasks.Go(func() { m.keepTime(ctx, b) })
	b.tasks.Go(func() { m.publishing(ctx, b) })
	b.tasks.Go(func() {
		m.cfg.Around.Serve(ctx, Guest{
			Dial: b.guest.Dial, SSH: b.ssh, Secret: b.secret, Woke: func() { b.mayLag("the host woke up") },
		})
	})
}

// hearVM takes what the hypervisor tells of a running machine.
func (m *Machine) hearVM(b *boot, e vm.Event) {
	m.cfg.Log.Info("virtual machine", "event", e.Kind, "detail", e.Detail)
	if e.Kind == vm.EventResumed {
		b.mayLag("the virtual machine stood still")
	}
}

// publish is what the guest wants open, handed on by the one goroutine that follows its events to the one that opens ports:
// only the newest set counts.
func (b *boot) publish(list []guestapi.Forward) {
	for {
		select {
		case b.forwards <- list:
			return
		default:
		}
		select {
		case <-b.forwards:
		default:
		}
	}
}

// maxForwards bounds what a guest can have published at once.
const maxForwards = 5000

// publishing opens what the guest wants open, one set after another, and closes all in the end.
func (m *Machine) publishing(ctx context.Context, b *boot) {
	defer func() { m.cfg.Around.Publish(context.WithoutCancel(ctx), nil) }()
	for {
		select {
		case <-ctx.Done():
			return
		case list := <-b.forwards:
			if len(list) > maxForwards {
				m.cfg.Log.Warn("the guest wants more ports than a machine gets", "ports", len(list), "limit", maxForwards)
				list = list[:maxForwards]
			}
			outcome := m.cfg.Around.Publish(ctx, list)
			m.cfg.Log.Debug("ports", "wanted", len(list), "outcome", outcome)
			if err := b.guest.Published(ctx, outcome); err != nil && ctx.Err() == nil {
				m.cfg.Log.Warn("tell the guest what is published", "err", err)
			}
		}
	}
}

// reason is what a user is told of err: the guest's own words without the call that it answered.
func reason(err error) string {
	var r *guestapi.Refusal
	if errors.As(err, &r) {
		return clean(r.Reason)
	}
	return err.Error()
}

// Apply makes s the machine's settings as far as that can be done while it runs: what is left counts from the next start.
// Where it fails, what was in force still is, as far as the guest can take it back.
func (m *Machine) Apply(ctx context.Context, s api.Settings) error {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.mu.Lock()
	guest, old := m.guest, m.status.Settings
	m.mu.Unlock()
	if guest == nil {
		return api.Errorf(api.CodeNotRunning, "machine %q is still starting", m.cfg.Name)
	}
	spec, err := m.cfg.Around.Prepare(ctx, s)
	if err != nil {
		return err
	}
	spec.Hostname = m.hostname()
	if err := guest.Apply(ctx, spec); err != nil {
		switch {
		case errors.Is(err, guestapi.ErrRestart):
			err = api.Errorf(api.CodeRestart, "%v", err)
		case ctx.Err() == nil:
			err = api.Errorf(api.CodeEngine, "%s", reason(err))
		}
		m.takeBack(ctx, guest, old)
		return err
	}
	m.mu.Lock()
	// What counts from the next start only is still as it was.
	s.CPUs, s.Memory, s.Disk, s.Arch = old.CPUs, old.Memory, old.Disk, old.Arch
	m.status.Settings = s
	m.mu.Unlock()
	m.cfg.Save(m.Status())
	return nil
}

// backTime bounds how long settings may take to be taken back, for which dockerd may have to start again.
const backTime = time.Minute

// takeBack puts old into force again, also where nobody waits for it any more.
func (m *Machine) takeBack(ctx context.Context, guest *guestapi.Client, old api.Settings) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), backTime)
	defer cancel()
	before, err := m.cfg.Around.Prepare(ctx, old)
	if err == nil {
		before.Hostname = m.hostname()
		err = guest.Apply(ctx, before)
	}
	if err != nil {
		m.cfg.Log.Error("take settings back", "err", err)
	}
}
