package machine

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/vm"
)

// boot is one virtual machine and what runs beside it.
type boot struct {
	vm      vm.Machine
	secret  []byte
	guest   *guestapi.Client // nil until the guest has given its first sign
	started time.Time        // when the virtual CPUs began to run

	ssh      net.Listener            // of the guest's calls to the user's ssh agent
	forwards chan []guestapi.Forward // the newest set that the guest wants open, until it is
	woke     chan string             // why the guest's clock may be wrong

	consoleFrom int64 // where this boot's part of the console's log begins

	knocked chan struct{} // closed when the guest's agent answers
	ready   chan struct{} // closed at the guest's first EventReady
	failed  chan error    // gets why the guest cannot do its work
	exited  chan struct{} // closed when the hypervisor has ended
	exitErr error         // why; to be read after exited

	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

func (b *boot) hasExited() bool {
	select {
	case <-b.exited:
		return true
	default:
		return false
	}
}

// diesNow is whether a stream to the guest broke because the hypervisor died, which is known a little later.
func (m *Machine) diesNow(ctx context.Context, b *boot) bool {
	limit := time.NewTimer(m.cfg.Timeouts.Death)
	defer limit.Stop()
	select {
	case <-b.exited:
		return true
	case <-ctx.Done():
	case <-limit.C:
	}
	return false
}

// wait ends what runs beside the virtual machine.
func (b *boot) wait() {
	b.cancel()
	b.tasks.Wait()
	if b.guest != nil {
		b.guest.Close()
	}
}

// start goes from nothing to an Engine API that has answered. The boot is nil where no virtual machine was made; it is not
// where one was, also with an error.
func (m *Machine) start(ctx context.Context) (*boot, error) {
	var found probed
	var probing sync.WaitGroup
	probing.Go(func() { found = m.probe(ctx) })
	ready, err := m.prepare(ctx)
	probing.Wait()
	if err = errors.Join(err, found.err); err != nil {
		return nil, err
	}
	cfg := ready.cfg
	if found.emulates(cfg.Arch) && ready.unpacked != "" {
		cfg.Kernel = ready.unpacked
	}
	if !found.caps.FileSystem && cfg.FileSystem != nil {
		cfg.FileSystem = nil
		m.note(found.driver.Name() + " cannot share directories")
	}
	b := &boot{
		secret: ready.secret, knocked: make(chan struct{}), ready: make(chan struct{}), failed: make(chan error, 1),
		exited: make(chan struct{}), forwards: make(chan []guestapi.Forward, 1), woke: make(chan string, 1),
	}
	beside, cancel := context.WithCancel(context.WithoutCancel(ctx))
	b.cancel = cancel
	if err := m.launch(ctx, b, found.driver, cfg); err != nil {
		return b, err
	}
	if err := m.awaitGuest(ctx, beside, b); err != nil {
		return b, err
	}
	return b, m.awaitEngine(ctx, b)
}

type probed struct {
	driver vm.Driver
	caps   vm.Capabilities
	err    error
}

// emulates is whether a guest of architecture arch (empty: the host's) would run by emulation. Where that cannot be told the
// answer is no, which costs time and not safety.
func (p probed) emulates(arch string) bool {
	return p.caps.Accelerator == "tcg" || arch != "" && arch != runtime.GOARCH
}

// probe finds the first driver that works here.
func (m *Machine) probe(ctx context.Context) probed {
	began := time.Now()
	var errs []error
	for _, d := range m.cfg.Drivers {
		caps, err := d.Probe(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", d.Name(), err))
			continue
		}
		m.mu.Lock()
		m.status.Driver, m.status.Accelerator, m.status.Note = d.Name(), caps.Accelerator, caps.Reason
		m.mu.Unlock()
		m.step("probe "+d.Name(), began)
		m.cfg.Log.Info("hypervisor", "driver", d.Name(), "version", caps.Version, "accelerator", caps.Accelerator, "reason", caps.Reason)
		return probed{driver: d, caps: caps}
	}
	if len(errs) == 0 {
		return probed{err: fmt.Errorf("find a hypervisor: %w", vm.ErrNotSupported)}
	}
	return probed{err: errors.Join(errs...)}
}

// prepared is what a boot needs, all of it on the disk.
type prepared struct {
	cfg      vm.Config
	unpacked string // see Assets
	secret   []byte
}

// prepare brings everything to the disk that the boot needs.
func (m *Machine) prepare(ctx context.Context) (prepared, error) {
	p := prepared{cfg: m.cfg.VM}
	began := time.Now()
	settings, err := m.cfg.Settings()
	if err != nil {
		return p, err
	}
	m.mu.Lock()
	m.status.Settings = settings
	m.mu.Unlock()
	spec, err := m.cfg.Around.Prepare(ctx, settings)
	if err != nil {
		return p, err
	}
	spec.Hostname = m.hostname()
	m.cfg.Around.Attach(&p.cfg)
	m.step("settings", began)
	p.cfg.CPUs, p.cfg.Memory, p.cfg.Arch = settings.CPUs, settings.Memory, settings.Arch

	m.progress("checking the guest image")
	began = time.Now()
	img, err := m.cfg.Files.Image(ctx)
	if err != nil {
		return p, err
	}
	m.mu.Lock()
	m.status.Image = img.Image
	m.mu.Unlock()
	m.step("image", began)

	began = time.Now()
	data, err := m.cfg.Files.Disk(settings.Disk)
	if err != nil {
		return p, err
	}
	m.step("data disk", began)

	began = time.Now()
	p.secret = make([]byte, guestapi.SecretLen)
	rand.Read(p.secret) // never fails: it ends the process instead
	initrd, err := m.cfg.Files.Initrd(guestapi.Boot{
		Version: guestapi.Version, Secret: p.secret,
		Spec: spec,
	})
	if err != nil {
		return p, err
	}
	m.step("initramfs", began)
	p.cfg.Kernel, p.cfg.Initrd, p.unpacked = img.Kernel, initrd, img.Unpacked
	p.cfg.Disks = []vm.Disk{
		{Path: img.Root, Serial: guestapi.SerialRoot, ReadOnly: true},
		{Path: data, Serial: guestapi.SerialData},
	}
	return p, ctx.Err()
}

func (m *Machine) hostname() string {
	if m.cfg.Name == "default" {
		return "coracle"
	}
	return "coracle-" + m.cfg.Name
}

// launch makes the virtual machine run.
func (m *Machine) launch(ctx context.Context, b *boot, d vm.Driver, cfg vm.Config) error {
	st := m.Status()
	m.progress("starting the virtual machine (%s, %s)", st.Driver, st.Accelerator)
	began := time.Now()
	machine, err := d.Open(ctx, cfg)
	if err != nil {
		return fmt.Errorf("open virtual machine: %w", err)
	}
	knocks, err := machine.Listen(guestapi.PortKnock)
	if err != nil {
		_ = machine.Stop(context.Background()) // frees what Open made
		return fmt.Errorf("listen for the guest: %w", err)
	}
	if st, err := os.Stat(cfg.Console); err == nil {
		b.consoleFrom = st.Size()
	}
	if b.ssh, err = machine.Listen(guestapi.PortSSH); err != nil {
		knocks.Close()
		_ = machine.Stop(context.Background())
		return fmt.Errorf("listen for the guest: %w", err)
	}
	if n, ok := machine.(vm.Notifier); ok {
		n.Notify(func(e vm.Event) { m.hearVM(b, e) })
	}
	b.started = time.Now()
	if err := machine.Start(ctx); err != nil {
		knocks.Close()
		b.ssh.Close()
		_ = machine.Stop(context.Background())
		return fmt.Errorf("start virtual machine: %w", err)
	}
	b.vm = machine
	b.tasks.Go(func() {
		b.exitErr = machine.Wait()
		close(b.exited)
	})
	b.tasks.Go(func() { m.awaitKnock(b, knocks) })
	m.step("start virtual machine", began)
	return nil
}

// knockTime bounds how long one connection may take to greet.
const knockTime = 10 * time.Second

// awaitKnock takes the guest's first sign. Whoever does not know the secret is not the guest's agent and is sent away.
func (m *Machine) awaitKnock(b *boot, l net.Listener) {
	defer l.Close()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_ = conn.SetDeadline(time.Now().Add(knockTime))
		err = guestapi.CheckGreeting(conn, b.secret)
		conn.Close()
		if err == nil {
			close(b.knocked)
			return
		}
		m.cfg.Log.Warn("a stranger knocked from inside the guest", "err", err)
	}
}

// awaitGuest returns when the guest's agent answers; beside is the context of what then runs along.
func (m *Machine) awaitGuest(ctx, beside context.Context, b *boot) error {
	m.progress("waiting for the guest to boot")
	limit := time.NewTimer(m.cfg.Timeouts.Boot)
	defer limit.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.exited:
		return m.died(b)
	case <-limit.C:
		return m.silent(b, "the guest gave no sign within %v", m.cfg.Timeouts.Boot)
	case <-b.knocked:
	}
	m.step("guest boots", b.started)
	m.cfg.Files.Booted()
	b.guest = guestapi.NewClient(b.vm.Dial, b.secret)
	b.tasks.Go(func() { m.follow(beside, b) })
	b.tasks.Go(func() { m.greet(beside, b) })
	m.serve(beside, b)
	return nil
}

// greetTime bounds the guest's answers to short questions.
const greetTime = 30 * time.Second

// greet checks that host and guest speak alike, and sets the guest's clock.
func (m *Machine) greet(ctx context.Context, b *boot) {
	ctx, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	m.setTime(ctx, b, "the guest has booted")
	hello, err := b.guest.Hello(ctx)
	if err != nil {
		if ctx.Err() == nil && !m.diesNow(ctx, b) && ctx.Err() == nil {
			b.giveUp(fmt.Errorf("greet the guest: %w: %w", vm.ErrGuestFailed, err))
		}
		return
	}
	m.cfg.Log.Info("guest", "image", clean(hello.Image), "kernel", clean(hello.Kernel), "bootID", clean(hello.BootID))
}

// giveUp tells why the guest cannot do its work; the first reason counts.
func (b *boot) giveUp(err error) {
	select {
	case b.failed <- err:
	default:
	}
}

// awaitEngine returns when the Engine API has answered as a client of the Docker socket sees it.
func (m *Machine) awaitEngine(ctx context.Context, b *boot) error {
	m.progress("waiting for the Docker Engine")
	began := time.Now()
	limit := time.NewTimer(m.cfg.Timeouts.Engine)
	defer limit.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.exited:
		return m.died(b)
	case err := <-b.failed:
		return err
	case <-limit.C:
		return m.silent(b, "the Docker Engine did not answer within %v", m.cfg.Timeouts.Engine)
	case <-b.ready:
	}
	m.mu.Lock()
	m.guest = b.guest
	m.mu.Unlock()
	close(m.engine)
	m.step("engine starts", began)
	began = time.Now()
	ctx, cancel := context.WithTimeout(ctx, greetTime)
	defer cancel()
	if err := m.cfg.Ping(ctx); err != nil {
		if m.diesNow(ctx, b) {
			return m.died(b)
		}
		return fmt.Errorf("ask the Docker Engine: %w: %w", vm.ErrGuestFailed, err)
	}
	m.step("first ping", began)
	m.selectContext()
	return nil
}

// died is why the virtual machine ended before its time.
func (m *Machine) died(b *boot) error {
	err := b.exitErr
	if err == nil {
		err = fmt.Errorf("%w: it powered off during its start", vm.ErrGuestFailed)
	}
	return fmt.Errorf("%w%s", err, m.consoleTail(b))
}

func (m *Machine) silent(b *boot, format string, args ...any) error {
	return fmt.Errorf("%w: %s%s", vm.ErrGuestTimeout, fmt.Sprintf(format, args...), m.consoleTail(b))
}
