//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	gonet "net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/boot"
	"github.com/coracle-engine/coracle/guest/clock"
	"github.com/coracle-engine/coracle/guest/engine"
	"github.com/coracle-engine/coracle/guest/net"
	"github.com/coracle-engine/coracle/guest/service"
	"github.com/coracle-engine/coracle/guest/share"
	"github.com/coracle-engine/coracle/guest/watch"
	"golang.org/x/sys/unix"
)

const (
	diskTime = 30 * time.Second // for a disk to appear after its driver was loaded
	logSize  = 1 << 20          // bytes of each service's log file before a new one begins
)

// guest holds what the boot's steps share.
type guest struct {
	agent   *agent
	console *service.Log
	reaper  *service.Reaper
	uevents *boot.Uevents
	loader  *boot.Loader
	boot    *api.Boot
	ports   *service.Group // what the host dials
	shares  *share.Shares
	docker  *engine.Engine
	ssh     *sshAgent
	clients *watch.Clients
	open    *watch.Ports  // what is to be open on the host
	shared  chan struct{} // closed when the shares are there, or cannot be
}

// Main is PID 1. It never returns.
func Main() {
	began := clock.Up()
	console := service.NewLog(os.Stderr, clock.Up)
	log := slog.New(slog.NewTextHandler(console.Writer("guest"), &slog.HandlerOptions{ReplaceAttr: withoutTime}))
	logCtx, endLog := context.WithCancel(context.Background())
	var logging sync.WaitGroup
	logging.Go(func() { console.Run(logCtx) })

	g := &guest{
		agent: newAgent(log), console: console, reaper: service.NewReaper(),
		loader: boot.NewLoader(boot.Insert, 4), shared: make(chan struct{}),
	}
	g.agent.events.add(api.Event{Kind: api.EventStep, Name: "kernel", End: began})
	err := g.begin()
	if err != nil {
		log.Error("the guest cannot start: powering off", "err", err)
	} else {
		g.run()
		log.Info("powering off")
	}
	endLog()
	logging.Wait()
	fmt.Fprintln(os.Stderr, "coracle-guest:", boot.PowerOff())
	select {}
}

func withoutTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// begin makes what all else needs. Without it nobody can be told anything but the console.
func (g *guest) begin() error {
	if err := os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return err
	}
	if err := boot.MountEarly(); err != nil {
		return err
	}
	var err error
	if g.boot, err = boot.ReadConfig(api.BootPath); err != nil {
		return err
	}
	if g.uevents, err = boot.ListenUevents(); err != nil {
		return err
	}
	g.compose()
	g.ports, err = g.openPorts()
	return err
}

// compose makes the rooms of the guest, and says how each part of a Spec comes into force there.
func (g *guest) compose() {
	a := g.agent
	g.shares = share.New(a.log, g.uevents.Changed)
	g.ssh = &sshAgent{path: api.SSHAgentSocket, log: a.log, dial: func(ctx context.Context) (gonet.Conn, error) {
		return dialHost(ctx, api.PortSSH, g.boot.Secret)
	}}
	g.clients = watch.NewClients(a.log, func(ctx context.Context, path string, args ...string) error {
		return g.command(ctx, "ports", []int{0}, path, args...)
	})
	g.open = watch.NewPorts(a.log, func(list []api.Forward) { a.events.add(api.Event{Kind: api.EventForwards, Forwards: list}) })
	a.publisher = g.open
	g.docker = engine.New(engine.Config{
		Reaper: g.reaper, Step: a.events.step, Refused: a.refused,
		Output: func(source string) io.Writer { return g.console.Writer(source) },
		Before: func(ctx context.Context) error { return await(ctx, g.shared) },
		Ready:  a.engineReady,
		Restart: func(ctx context.Context) error {
			return a.group.Restart(ctx, engine.Dockerd)
		},
	})
	a.check = g.docker.Check
	a.parts = []part{
		{"host name", func(_ context.Context, s api.Spec) error { return net.SetHostname(s.Hostname) }},
		{"network", func(_ context.Context, s api.Spec) error { return net.Apply(s.Network) }},
		{sharing, func(ctx context.Context, s api.Spec) error { return g.shares.Apply(ctx, s.Shares) }},
		{sshSocket, func(_ context.Context, s api.Spec) error { return g.ssh.set(s.SSHAgent) }},
		{"client addresses", func(_ context.Context, s api.Spec) error { g.clients.Set(s.ClientAddress); return nil }},
		{"docker", g.docker.Apply}, // which takes back by itself what it refused
	}
}

// Names of parts, where the boot does not go by the agent's list.
const (
	sharing   = "shared directories"
	sshSocket = "ssh agent"
)

func await(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run is the machine's life: boot, wait for the end to be asked for, end.
func (g *guest) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var life, rest sync.WaitGroup
	agentCtx, endAgent := context.WithCancel(context.Background())
	rest.Go(func() { g.reaper.Run(agentCtx) })
	life.Go(func() {
		if err := g.start(ctx, agentCtx, &rest); err != nil && ctx.Err() == nil {
			g.agent.fail(err)
		}
	})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGPWR)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) // Ctrl-Alt-Del comes as SIGINT
	select {
	case <-g.agent.off:
	case s := <-signals:
		g.agent.log.Info("the end is asked for", "signal", s.String())
	}
	cancel()
	life.Wait() // the services stop in their order
	g.leave()
	endAgent()
	rest.Wait()
}

// start brings the guest up and keeps it up until ctx ends. What must answer to the end runs in rest, until agentCtx ends.
func (g *guest) start(ctx, agentCtx context.Context, rest *sync.WaitGroup) error {
	index, err := boot.ReadIndex()
	if err != nil {
		return err
	}
	rest.Go(func() { g.openAgent(agentCtx, index) })
	if err := g.root(ctx, index); err != nil {
		return err
	}
	if err := boot.MountLate(); err != nil {
		return err
	}
	close(g.agent.rooted)
	if err := g.console.KeepFiles("/run/log", logSize); err != nil {
		return err
	}
	if index, err = boot.ReadIndex(); err != nil { // the root's knows all modules
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { g.modules(ctx, index) })
	wg.Go(func() { g.network(ctx, index) })
	wg.Go(func() { g.share(ctx) })
	if err := boot.Tune(); err != nil {
		g.agent.log.Warn("some settings of the kernel stay as they are", "err", err)
	}
	if err := g.data(ctx); err != nil {
		return err
	}
	return g.engine(ctx, index)
}

// openAgent makes the host reachable and tells it so.
func (g *guest) openAgent(ctx context.Context, index *boot.Index) {
	end := g.agent.events.step("modules (vsock)")
	if err := g.loader.Load(ctx, index, index.Class(boot.ClassVsock)...); err != nil {
		g.agent.log.Error("the host may not reach this guest", "err", err)
	}
	end()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if g.ports.Wait(ctx, "agent") == nil {
			g.knock(ctx)
		}
	})
	g.ports.Run(ctx)
}

// root finds the image's disk and makes it the root.
func (g *guest) root(ctx context.Context, index *boot.Index) error {
	end := g.agent.events.step("modules (root)")
	if err := g.loader.Load(ctx, index, index.Class(boot.ClassRoot)...); err != nil {
		g.agent.log.Error("the root may be out of reach", "err", err)
	}
	end()
	defer g.agent.events.step("mount root")()
	ctx, cancel := context.WithTimeout(ctx, diskTime)
	defer cancel()
	disk, err := boot.Disk(ctx, g.uevents, api.SerialRoot)
	if err != nil {
		return err
	}
	// The vsock modules come from the initramfs, which goes away now.
	if err := g.loader.Load(ctx, index, index.Class(boot.ClassVsock)...); err != nil {
		g.agent.log.Debug("vsock modules", "err", err)
	}
	return boot.SwitchRoot(disk)
}

func (g *guest) modules(ctx context.Context, index *boot.Index) {
	defer g.agent.events.step("modules")()
	if err := g.loader.Load(ctx, index, index.Class(boot.ClassBoot)...); err != nil && ctx.Err() == nil {
		g.agent.log.Error("some modules were not loaded", "err", err)
	}
}

// network brings the link up. A guest without a network still runs containers, so that nothing else waits for it.
func (g *guest) network(ctx context.Context, index *boot.Index) {
	defer g.agent.events.step("network")()
	err := net.SetHostname(g.boot.Spec.Hostname)
	err = errors.Join(err, net.Loopback())
	err = errors.Join(err, g.loader.Load(ctx, index, "virtio_net"))
	err = errors.Join(err, net.Apply(g.boot.Spec.Network))
	if err != nil && ctx.Err() == nil {
		g.agent.log.Error("the network is not up", "err", err)
		g.agent.events.add(api.Event{Kind: api.EventService, Name: "network", State: api.ServiceFailed, Detail: err.Error()})
	}
}

// share brings the host's directories in, which containers must not start without, and the socket of the user's ssh agent.
// What cannot be had is told: a machine without it is of more use than none.
func (g *guest) share(ctx context.Context) {
	defer close(g.shared)
	spec := g.boot.Spec
	if err := g.ssh.set(spec.SSHAgent); err != nil {
		g.agent.refused(sshSocket, err)
	}
	if len(spec.Shares) == 0 {
		return
	}
	defer g.agent.events.step(sharing)()
	if err := g.shares.Apply(ctx, spec.Shares); err != nil && ctx.Err() == nil { // virtiofs is built into the kernel
		g.agent.refused(sharing, err)
	}
}

func (g *guest) data(ctx context.Context) error {
	defer g.agent.events.step("data disk")()
	find, cancel := context.WithTimeout(ctx, diskTime)
	defer cancel()
	disk, err := boot.Disk(find, g.uevents, api.SerialData)
	if err != nil {
		return err
	}
	run := func(ctx context.Context, ok []int, path string, args ...string) error {
		return g.command(ctx, "disk", ok, path, args...)
	}
	if err := boot.Data(ctx, g.agent.log, run, disk); err != nil {
		return err
	}
	return boot.BindData()
}

// command runs a program to its end, which is to have one of the statuses in ok. What it writes is logged as source's.
func (g *guest) command(ctx context.Context, source string, ok []int, path string, args ...string) error {
	status, err := g.reaper.Command(ctx, g.console.Writer(source), path, args...)
	if err != nil {
		return err
	}
	if code := service.Exit(status); !slices.Contains(ok, code) {
		return fmt.Errorf("%s ended with status %d: see the console log", path, code)
	}
	return nil
}

// engine runs containerd and dockerd until ctx ends.
func (g *guest) engine(ctx context.Context, index *boot.Index) error {
	if err := g.docker.Prepare(g.boot.Spec); err != nil {
		return err
	}
	g.clients.Set(g.boot.Spec.ClientAddress)
	ports := service.Unit{Service: &publishing{g.open}}
	group, err := service.NewGroup(g.agent.report(), service.DefaultPause, append([]service.Unit{ports}, g.docker.Units(ports.Name())...)...)
	if err != nil {
		return err
	}
	g.agent.engineIs(group)
	var wg sync.WaitGroup
	wg.Go(func() { g.late(ctx, index) })
	group.Run(ctx)
	wg.Wait()
	return nil
}

// late does what nothing waits for, once the processors are idle.
func (g *guest) late(ctx context.Context, index *boot.Index) {
	if err := g.agent.engineReady(ctx); err != nil && ctx.Err() != nil {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { watch.NewListeners(g.agent.log, g.open).Run(ctx) })
	defer g.agent.events.step("late modules")()
	err := g.loader.Load(ctx, index, index.Class(boot.ClassLate)...)
	if err = errors.Join(err, boot.MountExtra()); err != nil && ctx.Err() == nil {
		g.agent.log.Warn("containers may miss something", "err", err)
	}
}

// leave ends what is left after the services, and lets go of the data disk.
func (g *guest) leave() {
	defer g.agent.events.step("leave")()
	_ = g.ssh.set(false)
	for _, round := range []struct {
		signal unix.Signal
		wait   time.Duration
	}{{unix.SIGTERM, 500 * time.Millisecond}, {unix.SIGKILL, 2 * time.Second}} {
		_ = unix.Kill(-1, round.signal) // all but this process
		ctx, cancel := context.WithTimeout(context.Background(), round.wait)
		err := g.reaper.Empty(ctx)
		cancel()
		if err == nil {
			break
		}
	}
	if err := boot.LeaveData(); err != nil {
		g.agent.log.Error("the data disk is left read-only", "err", err)
	}
}
