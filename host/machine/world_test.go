package machine_test

import (
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
	"slices"
	"sync"
	"testing"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/diagnose"
	"github.com/coracle-engine/coracle/host/machine"
	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

// patience bounds everything that a test waits for.
const patience = 20 * time.Second

// guest is a scripted guest: the zero value boots, answers and shuts down as a good one does.
type guest struct {
	boot     func(ctx context.Context, g *vmtest.Guest) error // runs before anything answers
	silent   bool                                             // never knocks
	events   []guestapi.Event                                 // what Watch tells first; nil: a start with two steps
	later    chan guestapi.Event                              // what it tells then
	mute     bool                                             // the watch fails at once
	hello    guestapi.Hello
	deaf     bool  // takes the order to shut down and does nothing
	shutdown error // how it ends when told to

	published chan []guestapi.Publication

	mu   sync.Mutex
	spec guestapi.Spec // the latest that was applied
	told bool          // it was asked to shut down
	set  time.Time
	off  chan struct{}
}

var goodStart = []guestapi.Event{
	{Kind: guestapi.EventStep, Name: "kernel", End: 2 * time.Millisecond},
	{Kind: guestapi.EventService, Name: "dockerd", State: guestapi.ServiceStarting},
	{Kind: guestapi.EventStep, Name: "dockerd", Start: 2 * time.Millisecond, End: 3 * time.Millisecond},
	{Kind: guestapi.EventService, Name: "dockerd", State: guestapi.ServiceReady},
	{Kind: guestapi.EventReady, End: 4 * time.Millisecond},
}

// run is the program that the fake machine boots.
func (g *guest) run(ctx context.Context, v *vmtest.Guest) error {
	if g.boot != nil {
		if err := g.boot(ctx, v); err != nil {
			return err
		}
	}
	data, err := os.ReadFile(v.Config().Initrd)
	if err != nil {
		return err
	}
	var boot guestapi.Boot
	if err := json.Unmarshal(data, &boot); err != nil {
		return err
	}
	v.Up()
	agent, err := v.Listen(guestapi.PortAgent)
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: guestapi.Handler(g, g)}
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(greeted{agent, boot.Secret}) })
	defer serving.Wait()
	defer srv.Close()
	for _, port := range []uint32{guestapi.PortDocker, guestapi.PortShell} {
		if err := v.Handle(ctx, port, func(c net.Conn) {
			if guestapi.CheckGreeting(c, boot.Secret) == nil {
				io.Copy(c, c)
			}
		}); err != nil {
			return err
		}
	}
	if !g.silent {
		if err := knock(v, boot.Secret); err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
		return nil
	case <-g.off:
		return g.shutdown
	}
}

func knock(v *vmtest.Guest, secret []byte) error {
	c, err := v.Dial(guestapi.PortKnock)
	if err != nil {
		return err
	}
	defer c.Close()
	return guestapi.Greet(c, secret)
}

// greeted is a listener whose connections must greet.
type greeted struct {
	net.Listener
	secret []byte
}

func (l greeted) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if guestapi.CheckGreeting(c, l.secret) == nil {
			return c, nil
		}
		c.Close()
	}
}

func (g *guest) Hello() guestapi.Hello { return g.hello }

func (g *guest) Apply(_ context.Context, s guestapi.Spec) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if string(s.Daemon) == `{"bad":1}` {
		return errors.New("dockerd does not know it")
	}
	g.spec = s
	return nil
}

func (g *guest) SetTime(now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.set = now
	return nil
}

func (g *guest) clock() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.set
}

func (g *guest) applied() guestapi.Spec {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.spec
}

func (g *guest) Shutdown() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.told && !g.deaf {
		close(g.off)
	}
	g.told = true
}

func (g *guest) wasTold() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.told
}

func (g *guest) Watch(ctx context.Context, f func(guestapi.Event) error) error {
	if g.mute {
		return errors.New("no events today")
	}
	for _, e := range g.events {
		if err := f(e); err != nil {
			return err
		}
	}
	for {
		select {
		case e := <-g.later:
			if e.Kind == "break" {
				return errors.New("broken")
			}
			if err := f(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// files are those of a test: real files of no meaning.
type files struct {
	dir            string
	imageErr, disk error
	elf            string

	mu     sync.Mutex
	booted int
}

func (f *files) Image(ctx context.Context) (machine.Assets, error) {
	return machine.Assets{Image: api.Image{Version: "7"}, Kernel: "vmlinuz", Unpacked: f.elf, Root: "root"}, f.imageErr
}

func (f *files) Disk(size int64) (string, error) { return "data", f.disk }

func (f *files) initrd() string { return filepath.Join(f.dir, "initrd") }

func (f *files) Initrd(boot guestapi.Boot) (string, error) {
	data, err := json.Marshal(boot)
	if err != nil {
		return "", err
	}
	return f.initrd(), os.WriteFile(f.initrd(), data, 0o600)
}

func (f *files) Booted() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.booted++
	os.Remove(f.initrd())
}

// around is a fake that publishes all but port 1.
type around struct {
	mu        sync.Mutex
	published [][]guestapi.Forward
	served    chan machine.Guest
	err       error
}

func (a *around) Prepare(_ context.Context, s api.Settings) (guestapi.Spec, error) {
	return guestapi.Spec{Daemon: s.Engine}, a.err
}

func (a *around) Attach(cfg *vm.Config) { cfg.Network.MTU = 4000 }

func (a *around) Serve(ctx context.Context, g machine.Guest) {
	a.served <- g
	<-ctx.Done()
}

func (a *around) Publish(_ context.Context, list []guestapi.Forward) []guestapi.Publication {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.published = append(a.published, list)
	var out []guestapi.Publication
	for _, f := range list {
		p := guestapi.Publication{ID: f.ID}
		if f.Port == 1 {
			p.Error = "address already in use"
		}
		out = append(out, p)
	}
	return out
}

func (a *around) Report(*api.Status) {}

// selector counts.
type selector struct {
	err        error
	mu         sync.Mutex
	set, unset int
}

func (s *selector) Set() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set++
	return s.err
}

func (s *selector) Unset() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unset++
	return nil
}

// world is a machine with everything around it.
type world struct {
	*machine.Machine
	guest  *guest
	driver *vmtest.Driver
	files  *files
	docker *selector
	around *around
	cfg    machine.Config

	mu     sync.Mutex
	saved  []api.State
	events []api.Event
	opened vm.Config
	done   chan error
	cancel context.CancelFunc // of Run's context
}

// launch makes a world, changed by change, and starts its machine; the test's end stops it.
func launch(t *testing.T, change func(*world)) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{
		guest: &guest{
			off: make(chan struct{}), later: make(chan guestapi.Event), published: make(chan []guestapi.Publication, 10), events: goodStart,
			hello: guestapi.Hello{Version: guestapi.Version, Image: "7"},
		},
		files: &files{dir: dir}, docker: &selector{}, around: &around{served: make(chan machine.Guest, 1)}, done: make(chan error, 1),
	}
	w.driver = &vmtest.Driver{Guest: func(ctx context.Context, g *vmtest.Guest) error {
		w.mu.Lock()
		w.opened = g.Config()
		w.mu.Unlock()
		return w.guest.run(ctx, g)
	}}
	w.cfg = machine.Config{
		Name: "work", Since: time.Now(), Drivers: []vm.Driver{w.driver},
		VM:       vm.Config{Name: "work", Console: filepath.Join(dir, "console.log")},
		Settings: func() (api.Settings, error) { return api.Settings{CPUs: 2, Memory: 1 << 30, Disk: 8 << 30}, nil },
		Files:    w.files, Around: w.around, Docker: w.docker, DockerSocket: "docker.sock", ContextName: "coracle-work",
		Ping:     w.ping,
		Explain:  func(err error) *api.Error { return diagnose.Explain(err, "work") },
		Save:     w.save,
		Log:      slog.New(slog.DiscardHandler),
		Timeouts: machine.Timeouts{Boot: patience, Engine: patience, Shutdown: patience, Death: 200 * time.Millisecond},
	}
	if change != nil {
		change(w)
	}
	w.Machine = machine.New(w.cfg)
	var watch sync.WaitGroup
	watch.Go(func() {
		if err := w.Watch(context.Background(), w.hear); err != nil {
			t.Errorf("watch ended with %v", err)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	go func() {
		err := w.Run(ctx)
		watch.Wait()
		w.done <- err
	}()
	t.Cleanup(func() {
		w.Stop(true)
		w.wait(t)
		cancel()
		if _, err := os.Stat(w.files.initrd()); err == nil {
			t.Error("the initramfs with the secret is still there")
		}
	})
	return w
}

func (w *world) ping(ctx context.Context) error {
	c, err := w.DialDocker(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Fprint(c, "ping")
	_, err = io.ReadFull(c, make([]byte, 4))
	return err
}

func (w *world) save(st api.Status) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.saved = append(w.saved, st.State)
}

func (w *world) hear(e api.Event) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
	return nil
}

func (w *world) heard() []api.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.events)
}

// wait is what Run returned.
func (w *world) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-w.done:
		w.done <- err // for who asks again
		return err
	case <-time.After(patience):
		t.Fatalf("Run did not end: status %+v", w.Status())
		return nil
	}
}

// until waits for an event that is told.
func (w *world) until(t *testing.T, what string, is func(api.Event) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	found := errors.New("found")
	if err := w.Watch(ctx, func(e api.Event) error {
		if is(e) {
			return found
		}
		return nil
	}); err != found {
		t.Fatalf("%s never came (%v): status %+v", what, err, w.Status())
	}
}

func (w *world) untilState(t *testing.T, s api.State) {
	t.Helper()
	w.until(t, string(s), func(e api.Event) bool { return e.Kind == api.EventState && e.State == s })
}

// states are those that were gone through, as watchers and as the disk have them.
func (w *world) states(t *testing.T) []api.State {
	t.Helper()
	var told []api.State
	for _, e := range w.heard() {
		if e.Kind == api.EventState {
			told = append(told, e.State)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(told, w.saved) {
		t.Errorf("watchers were told %v, saved was %v", told, w.saved)
	}
	return told
}

// Published implements guestapi.Publisher.
func (g *guest) Published(list []guestapi.Publication) { g.published <- list }
