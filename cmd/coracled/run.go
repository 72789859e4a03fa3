package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/config"
	"github.com/coracle-engine/coracle/host/diagnose"
	"github.com/coracle-engine/coracle/host/dockerproxy"
	"github.com/coracle-engine/coracle/host/image"
	"github.com/coracle-engine/coracle/host/integrate"
	"github.com/coracle-engine/coracle/host/lock"
	"github.com/coracle-engine/coracle/host/machine"
	"github.com/coracle-engine/coracle/host/paths"
	"github.com/coracle-engine/coracle/host/server"
	"github.com/coracle-engine/coracle/host/socket"
	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/drivers"
)

// options are what `coracled run` was told.
type options struct {
	name         string
	cpus         int
	memory, disk int64
	arch         string
	shares       []string // as api.ParseShare reads them
	context      bool
	since        time.Time
}

const (
	// lockWait is how long the hypervisor of a killed host process may take to let go of the machine's lock; openWait how
	// long a host process that has just taken it may take to answer.
	lockWait = 5 * time.Second
	openWait = 300 * time.Millisecond
	// engineWait is how long a docker client waits for an engine that is starting.
	engineWait = 2 * time.Minute
)

// errTold marks a failure that the machine's own events have told.
var errTold = errors.New("machine failed")

// run owns the machine from its lock to its end.
func (o options) run(ctx context.Context, home string) error {
	place, err := paths.ForMachine(home, o.name)
	if err != nil {
		return err
	}
	held, err := own(ctx, place)
	if err != nil {
		return err
	}
	defer held.Close()
	fresh := isNew(place)
	if err = renew(place.RunDir()); err == nil {
		err = o.serve(ctx, home, place, held)
	}
	if rmErr := os.RemoveAll(place.RunDir()); rmErr != nil && err == nil {
		err = rmErr
	}
	if err != nil && fresh && neverBooted(place) {
		_ = discard(place) // there is nothing in it but what we just made
	}
	return err
}

// noData is what an empty data disk may take on the host, in bytes: some file systems count a block or two for it. A guest
// writes megabytes before anything else.
const noData = 64 << 10

// neverBooted is whether no guest can have written to the machine's data disk. A console's log that is missing does not say
// so alone: people remove logs.
func neverBooted(place paths.Machine) bool {
	_, err := os.Lstat(place.Console())
	return errors.Is(err, os.ErrNotExist) && image.DiskUsed(place.DataDisk()) < noData
}

// isNew is whether there is nothing in the machine's directory yet but its lock.
func isNew(place paths.Machine) bool {
	entries, err := os.ReadDir(place.Dir)
	return err == nil && len(entries) == 1 && entries[0].Name() == filepath.Base(place.Lock())
}

// renew makes dir, empty. It belongs to the machine's owner alone: whoever still waits for the lock has no use for it.
func renew(dir string) error {
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return fmt.Errorf("make machine's directory: %w", err)
	}
	return nil
}

// discard removes the machine's directory, which goes at once: nobody who makes it anew finds half of the old one.
func discard(place paths.Machine) error {
	gone := filepath.Join(filepath.Dir(place.Dir), fmt.Sprintf(".%s.%d", place.Name, os.Getpid()))
	if err := os.Rename(place.Dir, gone); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// own makes the machine's directory, where there is none, and takes its lock. An owner that says it is up is not waited for;
// one that is on its way out, or does not answer, may still let go.
func own(ctx context.Context, place paths.Machine) (*os.File, error) {
	var st api.Status
	for _, wait := range []time.Duration{0, openWait, lockWait} {
		f, err := take(ctx, place, wait)
		if !errors.Is(err, lock.ErrHeld) {
			return f, err
		}
		if st, err = ask(ctx, place); err == nil && (st.State == api.Starting || st.State == api.Running) {
			return nil, api.Errorf(api.CodeRunning, "machine %q is running", place.Name)
		}
	}
	if st.State == api.Stopping {
		return nil, &api.Error{Code: api.CodeRunning, Message: fmt.Sprintf("machine %q is still stopping", place.Name), Hint: "try again when it has stopped"}
	}
	return nil, &api.Error{Code: api.CodeRunning,
		Message: fmt.Sprintf("machine %q belongs to a process that does not answer", place.Name),
		Hint:    "find it with `fuser " + place.Lock() + "` and end it, then try again"}
}

// ask is the status of the machine's owner, who answers at once or not at all.
func ask(ctx context.Context, place paths.Machine) (api.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return api.New(place).Status(ctx)
}

// take makes the directory and takes the lock, as often as a first start fails beside us and takes the directory with it.
func take(ctx context.Context, place paths.Machine, wait time.Duration) (f *os.File, err error) {
	for range 100 {
		if err = os.MkdirAll(place.Dir, 0o700); err != nil {
			err = fmt.Errorf("make machine's directory: %w", err)
		} else {
			f, err = lock.Take(ctx, place.Lock(), wait)
		}
		if !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return f, err
}

// serve opens the machine's sockets, runs it, and closes them.
func (o options) serve(ctx context.Context, home string, place paths.Machine, held *os.File) error {
	logs, err := openLog(place.Log())
	if err != nil {
		return err
	}
	defer logs.Close()
	_ = debug.SetCrashOutput(logs.file, debug.CrashOptions{})
	log := slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	log.Info("launched", "name", o.name, "pid", os.Getpid(), "home", home)
	host, err := thisHost(home)
	if err != nil {
		return err
	}
	around, err := newAround(home, place, log)
	if err != nil {
		return err
	}
	defer around.close()
	m := machine.New(o.machineConfig(home, place, held, around, log))
	apiListener, err := socket.Listen(place.APISocket())
	if err != nil {
		return fmt.Errorf("open API socket: %w", err)
	}
	defer apiListener.Close()
	dockerListener, err := socket.Listen(place.DockerSocket())
	if err != nil {
		return fmt.Errorf("open Docker socket: %w", err)
	}
	defer dockerListener.Close()

	var beside sync.WaitGroup
	defer beside.Wait()
	proxyCtx, stopProxy := context.WithCancel(context.WithoutCancel(ctx))
	defer stopProxy()
	proxy := dockerproxy.Proxy{Log: log, Policy: around.policy, Dial: func(ctx context.Context) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, engineWait)
		defer cancel()
		return m.DialDocker(ctx)
	}}
	beside.Go(func() {
		if err := proxy.Serve(proxyCtx, dockerListener); err != nil {
			log.Error("docker proxy ended", "err", err)
		}
	})
	srv := server.New(served{m, place, &config.File{Machine: o.name, Path: place.Config(), Disk: place.DataDisk(), Host: host}}, log)
	beside.Go(func() { _ = srv.Serve(apiListener) })
	beside.Go(func() { tell(m) })

	runErr := m.Run(ctx)
	if !o.context { // one that a killed process left would lead nowhere now
		o.forgetContext(place, log)
	}
	apiListener.Close() // watchers stay connected until this process ends
	if runErr != nil {
		return fmt.Errorf("%w: %w", errTold, runErr)
	}
	return nil
}

// served is a machine as its API shows it: its status tells what its disk takes, and who watches it sees the end when this
// process ends, so that by then its lock is free and its sockets are gone.
type served struct {
	*machine.Machine
	place paths.Machine
	file  *config.File
}

func (s served) Configure(ctx context.Context, ch api.Change) (api.Configuration, error) {
	return s.file.Configure(ctx, s, ch)
}

func (s served) Status() api.Status {
	st := s.Machine.Status()
	st.DiskUsed = image.DiskUsed(s.place.DataDisk())
	return st
}

func (s served) Watch(ctx context.Context, f func(api.Event) error) error {
	if err := s.Machine.Watch(ctx, f); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// tell writes the machine's events to standard output until its start has succeeded or failed, and lets go of it.
func tell(m *machine.Machine) {
	enc := json.NewEncoder(os.Stdout)
	up := errors.New("up")
	_ = m.Watch(context.Background(), func(e api.Event) error {
		_ = enc.Encode(e) // nobody reads any more: go on
		if e.Kind == api.EventState && e.State == api.Running || e.Kind == api.EventError {
			return up
		}
		return nil
	})
	releaseOutput()
}

func (o options) machineConfig(home string, place paths.Machine, held *os.File, around *around, log *slog.Logger) machine.Config {
	files := &files{home: home, place: place}
	settings := func() (api.Settings, error) {
		s, kept, err := o.settings(home, place)
		files.settings, files.keep = s, !kept
		return s, err
	}
	cfg := machine.Config{
		Name: o.name, Since: o.since,
		Drivers:  drivers.All(log, cacheDir(home)),
		VM:       vm.Config{Name: o.name, RunDir: place.RunDir(), Console: place.Console(), KeepOpen: []*os.File{held}},
		Settings: settings, Files: files, Around: around,
		DockerSocket: place.DockerSocket(), ContextName: paths.ContextName(o.name),
		Ping:    api.New(place).Ping,
		Explain: func(err error) *api.Error { return diagnose.Explain(err, o.name) },
		Save:    func(st api.Status) { save(place, st, log) },
		Log:     log, Timeouts: machine.DefaultTimeouts,
	}
	if o.context {
		cfg.Docker = dockerContext(place)
	}
	return cfg
}

func (o options) forgetContext(place paths.Machine, log *slog.Logger) {
	if err := dockerContext(place).Unset(); err != nil {
		log.Warn("docker context", "err", err)
	}
}

// guestArch is the architecture, as GOARCH spells it, of a machine's guest.
func guestArch(s api.Settings) string {
	if s.Arch != "" {
		return s.Arch
	}
	return runtime.GOARCH
}

func dockerContext(place paths.Machine) integrate.Context {
	home, err := os.UserHomeDir()
	if u, uerr := user.Current(); err != nil && uerr == nil { // where $HOME is not set, docker looks there too
		home = u.HomeDir
	}
	return integrate.Context{
		DockerDir: integrate.DockerDir(os.Getenv, home), Name: paths.ContextName(place.Name),
		Description: "Coracle machine " + place.Name, Host: place.DockerHost(), Former: place.FormerContext(),
	}
}

// settings are the machine's own, with what the user asked for now put over them; kept is whether its file says just that.
func (o options) settings(home string, place paths.Machine) (s api.Settings, kept bool, err error) {
	host, err := thisHost(home)
	if err != nil {
		return s, false, err
	}
	old, err := config.Load(place.Config(), config.Default(host))
	if err != nil {
		return old, false, err
	}
	_, err = os.Stat(place.Config())
	s, kept = old, err == nil
	for _, over := range []struct{ from, to *int64 }{{&o.memory, &s.Memory}, {&o.disk, &s.Disk}} {
		if *over.from != 0 {
			*over.to = *over.from
		}
	}
	if o.cpus != 0 {
		s.CPUs = o.cpus
	}
	if o.arch != "" {
		s.Arch = o.arch
	}
	if s, err = config.AddShares(s, o.shares); err != nil {
		return s, false, err
	}
	return s, kept && reflect.DeepEqual(s, old), config.Check(s, host)
}

// thisHost is the host that settings are checked against.
func thisHost(home string) (config.Host, error) {
	host, err := config.ThisHost()
	host.Coracle = home
	return host, err
}

// save keeps the status for when this process is gone. A disk that is full loses it, not the machine.
func save(place paths.Machine, st api.Status, log *slog.Logger) {
	st.DiskUsed = image.DiskUsed(place.DataDisk())
	data, err := json.Marshal(st)
	tmp := place.Last() + "~"
	if err == nil {
		err = os.WriteFile(tmp, data, 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, place.Last())
	}
	if err != nil {
		log.Warn("save status", "err", err)
	}
}
