//go:build linux

package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

func TestEnds(t *testing.T) {
	for _, c := range []struct {
		scenario string
		class    error
		text     string
	}{
		{"poweroff", nil, ""},
		{"reset", vm.ErrCrashed, "console.log"},
		{"signalled", vm.ErrCrashed, "signal"},
		{"aborts", vm.ErrCrashed, "assertion failed in tcg.c"},
		{"internal", vm.ErrCrashed, "KVM could not run the guest"},
	} {
		t.Run(c.scenario, func(t *testing.T) {
			m := fakeMachine(t, c.scenario)
			if err := m.Start(t.Context()); err != nil && c.scenario != "aborts" {
				t.Fatalf("start: %v", err)
			}
			err := m.Wait()
			if !errors.Is(err, c.class) || c.class != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("wait: %v; want class %v and %q", err, c.class, c.text)
			}
			if err != nil && strings.Contains(err.Error(), "warning") {
				t.Errorf("wait: %v: warnings are not for the user", err)
			}
		})
	}
}

func TestStartErrors(t *testing.T) {
	for scenario, class := range map[string]error{
		"no memory": vm.ErrNoMemory, "locked": vm.ErrRunning, "disk full": vm.ErrDiskFull, "bad kernel": vm.ErrAssetCorrupt,
		"old": vm.ErrNotSupported, "inexplicable": vm.ErrCrashed, "silent": context.DeadlineExceeded, "babbles": nil, "refuses": nil,
	} {
		t.Run(scenario, func(t *testing.T) {
			m := fakeMachine(t, scenario)
			m.limits.start = time.Second
			err := m.Start(t.Context())
			if err == nil || class != nil && !errors.Is(err, class) {
				t.Errorf("start: %v; want class %v", err, class)
			}
			if text, ok := complain[scenario]; ok && !strings.Contains(err.Error(), text) {
				t.Errorf("start: %v; want QEMU's own words %q", err, text)
			}
			t.Log(err)
			if m.Wait() == nil {
				t.Error("wait after a failed start: nil")
			}
			if _, err := m.Dial(t.Context(), 1); !errors.Is(err, vm.ErrNotRunning) {
				t.Errorf("dial: %v, want %v", err, vm.ErrNotRunning)
			}
			if alive(m) {
				t.Error("QEMU still runs")
			}
		})
	}
}

func alive(m *machine) bool { return syscall.Kill(m.proc.cmd.Process.Pid, 0) == nil }

func TestStop(t *testing.T) {
	for _, scenario := range []string{"runs", "stubborn"} {
		t.Run(scenario, func(t *testing.T) {
			m := fakeMachine(t, scenario)
			if err := m.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			for range 2 {
				if err := m.Stop(t.Context()); err != nil {
					t.Errorf("stop: %v", err)
				}
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("stop took %v", took)
			}
			if err := m.Wait(); err != nil {
				t.Errorf("wait: %v", err)
			}
			if alive(m) {
				t.Error("QEMU still runs")
			}
		})
	}
}

func TestStopWhileItStarts(t *testing.T) {
	m := fakeMachine(t, "silent")
	started := make(chan error, 1)
	go func() { started <- m.Start(t.Context()) }()
	for launched := false; !launched; time.Sleep(time.Millisecond) {
		m.mu.Lock()
		launched = m.proc != nil
		m.mu.Unlock()
	}
	if err := m.Stop(t.Context()); err != nil {
		t.Errorf("stop: %v", err)
	}
	if err := <-started; !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("start: %v, want %v", err, vm.ErrNotRunning)
	}
	if err := m.Wait(); err != nil {
		t.Errorf("wait: %v", err)
	}
}

func TestKilled(t *testing.T) {
	m := fakeMachine(t, "runs")
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.proc.kill()
	if err := m.Wait(); !errors.Is(err, vm.ErrCrashed) || !strings.Contains(err.Error(), "killed") {
		t.Errorf("wait: %v", err)
	}
}

func TestDiskFull(t *testing.T) {
	m := fakeMachine(t, "full")
	events := make(chan vm.Event, 10)
	m.Notify(func(e vm.Event) { events <- e })
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []vm.EventKind
	for range 3 {
		select {
		case e := <-events:
			got = append(got, e.Kind)
			t.Log(e.Detail)
		case <-time.After(5 * time.Second):
			t.Fatalf("events %v and no more", got)
		}
	}
	if d := cmp.Diff([]vm.EventKind{vm.EventDiskFull, vm.EventResumed, vm.EventDiskError}, got); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
}

// TestKeepOpen shows that QEMU holds the files it is given, so that a lock on one outlives us.
func TestKeepOpen(t *testing.T) {
	fakePath(t, "runs")
	cfg := goodConfig(t)
	lock, err := os.Create(cfg.RunDir + "/lock")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	cfg.KeepOpen = []*os.File{lock}
	m, err := New(vmtest.Logger(false), "").Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	again, err := os.Open(cfg.RunDir + "/lock")
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := syscall.Flock(int(again.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
		t.Errorf("lock while QEMU runs: %v, want %v", err, syscall.EWOULDBLOCK)
	}
	if err := m.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(again.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Errorf("lock after QEMU's end: %v", err)
	}
}

const orphanEnv = "CORACLE_TEST_ORPHAN"

// TestOrphan shows that QEMU does not outlive a host process that is killed. It runs itself as that process.
func TestOrphan(t *testing.T) {
	if os.Getenv(orphanEnv) != "" {
		m := fakeMachine(t, "lingers")
		if err := m.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		fmt.Println("pid", m.proc.cmd.Process.Pid)
		runtime.GC() // threads come and go; the one that launched must stay
		select {}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	host := exec.Command(self, "-test.run=^TestOrphan$", "-test.timeout=30s")
	host.Env = append(os.Environ(), orphanEnv+"=1")
	out, err := host.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	for lines := bufio.NewScanner(out); pid == 0 && lines.Scan(); {
		fmt.Sscanf(lines.Text(), "pid %d", &pid)
	}
	if pid == 0 {
		t.Fatalf("the host process started no QEMU: %v", host.Wait())
	}
	host.Process.Kill()
	host.Wait()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		// A process that nobody has reaped yet is a zombie; it holds nothing.
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		if time.Now().After(end) {
			syscall.Kill(pid, syscall.SIGKILL)
			t.Fatal("QEMU outlived its host process")
		}
	}
}
