package machine_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

func TestStartStop(t *testing.T) {
	before := runtime.NumGoroutine()
	w := launch(t, nil)
	w.untilState(t, api.Running)
	st := w.Status()
	want := api.Status{
		Name: "work", State: api.Running, PID: os.Getpid(), Driver: "fake", Accelerator: "none", Note: "it is a fake",
		Settings: api.Settings{CPUs: 2, Memory: 1 << 30, Disk: 8 << 30}, DockerSocket: "docker.sock", Context: "coracle-work",
		Image: api.Image{Version: "7"}, Services: []api.Service{{Name: "dockerd", State: "ready"}},
		Started: st.Started, Ready: st.Ready,
	}
	if diff := cmp.Diff(want, st); diff != "" || st.Ready.Before(st.Started) {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	for _, dial := range []func(context.Context) (net.Conn, error){w.DialDocker, w.DialShell} {
		c, err := dial(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "hello")
		c.(vm.CloseWriter).CloseWrite()
		if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
			t.Errorf("the guest echoed %q, error %v", got, err)
		}
		c.Close()
	}
	w.Stop(false)
	w.Stop(false) // may be called again
	if err := w.wait(t); err != nil {
		t.Errorf("Run returned %v", err)
	}
	if !w.guest.wasTold() || w.docker.set != 1 || w.docker.unset != 1 || w.files.booted == 0 {
		t.Errorf("guest was asked: %v; docker context set %d times, unset %d; booted %d", w.guest.told, w.docker.set, w.docker.unset, w.files.booted)
	}
	if got := w.states(t); !slices.Equal(got, []api.State{api.Starting, api.Running, api.Stopping, api.Stopped}) {
		t.Errorf("states were %v", got)
	}
	if st := w.Status(); st.Error != nil || st.Context != "" {
		t.Errorf("at the end the status is %+v", st)
	}
	if _, err := w.DialDocker(t.Context()); api.CodeOf(err) != api.CodeNotRunning {
		t.Errorf("dialling what is gone: error is %v", err)
	}
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before; {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestWhatTheGuestGets looks at the machine that the driver was asked for.
func TestWhatTheGuestGets(t *testing.T) {
	w := launch(t, func(w *world) { w.files.elf = "vmlinux" })
	w.untilState(t, api.Running)
	w.mu.Lock()
	got := w.opened
	w.mu.Unlock()
	want := vm.Config{
		Name: "work", CPUs: 2, Memory: 1 << 30, Kernel: "vmlinuz", Initrd: w.files.initrd(), Console: got.Console,
		Disks:   []vm.Disk{{Path: "root", Serial: guestapi.SerialRoot, ReadOnly: true}, {Path: "data", Serial: guestapi.SerialData}},
		Network: vm.Network{MTU: 4000},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("config (-want +got):\n%s", diff)
	}
}

// TestUnpackedKernel has guests of the host's architecture and of another one, which can only be emulated.
func TestUnpackedKernel(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	for _, test := range []struct{ name, arch, elf, want string }{
		{"not emulated", runtime.GOARCH, "vmlinux", "vmlinuz"},
		{"emulated", other, "vmlinux", "vmlinux"},
		{"emulated, image has none", other, "", "vmlinuz"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := launch(t, func(w *world) {
				w.files.elf = test.elf
				w.cfg.Settings = func() (api.Settings, error) { return api.Settings{Arch: test.arch}, nil }
			})
			w.untilState(t, api.Running)
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.opened.Kernel != test.want {
				t.Errorf("kernel is %s: want %s", w.opened.Kernel, test.want)
			}
		})
	}
}

// TestFailures has every step of a start fail in turn.
func TestFailures(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*world)
		code   api.Code
		words  []string    // of the error
		states []api.State // between starting and failed
	}{
		{"no driver", func(w *world) { w.cfg.Drivers = nil }, api.CodeNotSupported, []string{"find a hypervisor"}, nil},
		{"probe", func(w *world) { w.driver.ProbeErr = vm.ErrNotInstalled }, api.CodeNotInstalled, []string{"fake: hypervisor is not installed"}, nil},
		{"settings", func(w *world) {
			w.cfg.Settings = func() (api.Settings, error) { return api.Settings{}, api.Errorf(api.CodeConfig, "bad") }
		}, api.CodeConfig, []string{"bad"}, nil},
		{"image", func(w *world) { w.files.imageErr = api.Errorf(api.CodeNoImage, "none") }, api.CodeNoImage, []string{"none"}, nil},
		{"disk", func(w *world) { w.files.disk = vm.ErrDiskFull }, api.CodeDiskFull, nil, nil},
		{"open", func(w *world) { w.driver.OpenErr = vm.ErrConfig }, api.CodeConfig, []string{"open virtual machine"}, nil},
		{"start", func(w *world) { w.driver.StartErr = vm.ErrNoMemory }, api.CodeNoMemory, []string{"start virtual machine"}, nil},
		{"guest never knocks", func(w *world) {
			w.guest.silent = true
			w.cfg.Timeouts.Boot = 100 * time.Millisecond
			w.guest.boot = func(_ context.Context, g *vmtest.Guest) error {
				for i := range 20 {
					g.Print(fmt.Sprintf("\x1b[31mline %d\a", i))
				}
				return nil
			}
		}, api.CodeGuestTimeout, []string{"gave no sign within 100ms; the console's last lines:\n  [31mline 12\n", "\n  [31mline 19"}, []api.State{api.Stopping}},
		{"virtual machine dies while it boots", func(w *world) {
			w.guest.boot = func(_ context.Context, g *vmtest.Guest) error {
				g.Print("Kernel panic")
				return errors.New("killed")
			}
		}, api.CodeCrashed, []string{"killed", "the console's last lines:\n  Kernel panic"}, nil},
		{"guest powers off while it boots", func(w *world) {
			w.driver.Guest = func(context.Context, *vmtest.Guest) error { return nil }
		}, api.CodeGuestFailed, []string{"powered off during its start"}, nil},
		{"guest fails", func(w *world) {
			w.guest.events = []guestapi.Event{{Kind: guestapi.EventFailed, Detail: "data disk\x1b[2J\nis\x00 broken"}}
		}, api.CodeGuestFailed, []string{"guest could not start: data disk[2J is broken"}, []api.State{api.Stopping}},
		{"engine never answers", func(w *world) {
			w.guest.events = []guestapi.Event{}
			w.cfg.Timeouts.Engine = 100 * time.Millisecond
		}, api.CodeGuestTimeout, []string{"the Docker Engine did not answer within 100ms"}, []api.State{api.Stopping}},
		{"guest tells nothing", func(w *world) { w.guest.mute = true }, api.CodeGuestFailed, []string{"listen to the guest"}, []api.State{api.Stopping}},
		{"other protocol", func(w *world) {
			w.guest.hello.Version, w.guest.events = 99, []guestapi.Event{}
		}, api.CodeGuestFailed, []string{"protocol version 99, this host 2"}, []api.State{api.Stopping}},
		{"ping", func(w *world) { w.cfg.Ping = func(context.Context) error { return errors.New("pong?") } }, api.CodeGuestFailed, []string{"ask the Docker Engine", "pong?"}, []api.State{api.Stopping}},
		{"virtual machine dies while the engine starts", func(w *world) {
			w.guest.events = []guestapi.Event{}
			w.guest.shutdown = errors.New("killed")
			time.AfterFunc(100*time.Millisecond, w.guest.Shutdown)
		}, api.CodeCrashed, []string{"killed"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := launch(t, test.change)
			err := w.wait(t)
			st := w.Status()
			if err == nil || st.Error == nil || st.Error.Code != test.code || st.Error.Hint == "" {
				t.Fatalf("Run returned %v, status has %+v: want code %s", err, st.Error, test.code)
			}
			for _, word := range test.words {
				if !strings.Contains(st.Error.Message, word) {
					t.Errorf("message is %q: want %q in it", st.Error.Message, word)
				}
			}
			want := slices.Concat([]api.State{api.Starting}, test.states, []api.State{api.Failed})
			if got := w.states(t); !slices.Equal(got, want) {
				t.Errorf("states were %v: want %v", got, want)
			}
			if n := len(slices.DeleteFunc(w.heard(), func(e api.Event) bool { return e.Kind != api.EventError })); n != 1 {
				t.Errorf("%d error events", n)
			}
			if _, err := w.DialDocker(t.Context()); api.CodeOf(err) != test.code || !strings.Contains(err.Error(), `machine "work" failed: `) {
				t.Errorf("docker client is told %v", err)
			}
			if w.docker.unset != 1 {
				t.Errorf("docker context was unset %d times", w.docker.unset)
			}
		})
	}
}

// TestStranger has others knock first, who do not know the secret.
func TestStranger(t *testing.T) {
	w := launch(t, func(w *world) {
		w.guest.boot = func(_ context.Context, g *vmtest.Guest) error {
			if err := knock(g, make([]byte, guestapi.SecretLen)); err != nil {
				return err
			}
			c, err := g.Dial(guestapi.PortKnock)
			if err != nil {
				return err
			}
			io.WriteString(c, "CORACLE1") // and says too little
			return c.Close()
		}
	})
	w.untilState(t, api.Running)

	w = launch(t, func(w *world) {
		w.cfg.Timeouts.Boot, w.guest.silent = 100*time.Millisecond, true
		w.guest.boot = func(_ context.Context, g *vmtest.Guest) error { return knock(g, make([]byte, guestapi.SecretLen)) }
	})
	if err := w.wait(t); !errors.Is(err, vm.ErrGuestTimeout) {
		t.Errorf("after a stranger's knock alone: %v", err)
	}
}

// TestStopDuringStart stops a machine in each phase of its start: that is no failure.
func TestStopDuringStart(t *testing.T) {
	hang := func(ctx context.Context, _ *vmtest.Guest) error { <-ctx.Done(); return nil }
	const first = "before anything"
	for _, test := range []struct {
		name   string
		change func(*world)
		at     string // the progress at which to stop
		told   bool   // the guest is asked first
	}{
		{first, nil, "", false},
		{"guest boots", func(w *world) { w.guest.boot = hang }, "waiting for the guest to boot", false},
		{"engine starts", func(w *world) { w.guest.events = []guestapi.Event{} }, "waiting for the Docker Engine", true},
	} {
		for _, force := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, force %v", test.name, force), func(t *testing.T) {
				stopped := make(chan struct{})
				w := launch(t, func(w *world) {
					if test.change != nil {
						test.change(w)
					}
					if test.name == first {
						settings := w.cfg.Settings
						w.cfg.Settings = func() (api.Settings, error) { <-stopped; return settings() }
					}
				})
				if test.name != first {
					w.until(t, test.at, func(e api.Event) bool { return e.Text == test.at })
				}
				w.Stop(force)
				close(stopped)
				if err := w.wait(t); err != nil {
					t.Errorf("Run returned %v", err)
				}
				if st := w.Status(); st.State != api.Stopped || st.Error != nil {
					t.Errorf("status is %+v", st)
				}
				if !force && w.guest.wasTold() != test.told {
					t.Errorf("guest was asked: %v", !test.told)
				}
			})
		}
	}
}
