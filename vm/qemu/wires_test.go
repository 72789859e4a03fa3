//go:build linux

package qemu

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

// openFake is a machine on a fake QEMU, with a change to its configuration.
func openFake(t *testing.T, scenario string, change func(*vm.Config)) *machine {
	t.Helper()
	fakePath(t, scenario)
	cfg := goodConfig(t)
	change(&cfg)
	d := New(vmtest.Logger(testing.Verbose()), "")
	d.limits = limits{start: 2 * time.Second, quit: 300 * time.Millisecond, retry: 10 * time.Millisecond}
	m, err := d.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Stop(context.Background()) })
	return m.(*machine)
}

// TestFrames shows that the network lives as long as QEMU does, however either ends.
func TestFrames(t *testing.T) {
	for _, c := range []struct {
		name, scenario string
		frames         func(ctx context.Context, cable net.Conn) error
	}{
		{"until its context ends", "runs", func(ctx context.Context, _ net.Conn) error {
			<-ctx.Done()
			time.Sleep(20 * time.Millisecond)
			return ctx.Err()
		}},
		{"until the cable is cut", "runs", func(_ context.Context, cable net.Conn) error {
			_, err := io.Copy(io.Discard, cable)
			return err
		}},
		{"until the guest powers off", "poweroff", func(ctx context.Context, _ net.Conn) error {
			<-ctx.Done()
			return nil
		}},
		{"of its own will", "runs", func(context.Context, net.Conn) error { return errors.New("no more network") }},
	} {
		t.Run(c.name, func(t *testing.T) {
			var calls, running atomic.Int32
			m := openFake(t, c.scenario, func(cfg *vm.Config) {
				cfg.Network.Frames = func(ctx context.Context, cable net.Conn) error {
					calls.Add(1)
					running.Add(1)
					defer running.Add(-1)
					return c.frames(ctx, cable)
				}
			})
			if err := m.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if c.scenario == "runs" {
				if err := m.Stop(t.Context()); err != nil {
					t.Errorf("stop: %v", err)
				}
			}
			if err := m.Wait(); err != nil {
				t.Errorf("wait: %v", err)
			}
			if calls.Load() != 1 || running.Load() != 0 {
				t.Errorf("called %d times, %d outlive the machine; want once and none", calls.Load(), running.Load())
			}
		})
	}
}

// TestWires shows that QEMU inherits the other end of each pair and that nothing of them is left.
func TestWires(t *testing.T) {
	before := openFiles(t)
	l := launch{cfg: vm.Config{FileSystem: noFiles{}}}
	l.cfg.Network.Frames = func(context.Context, net.Conn) error { return nil }
	w, err := l.lay()
	if err != nil {
		t.Fatal(err)
	}
	if l.monitor != 3 || l.vsock != 4 || l.files != 5 || l.cable != 6 || len(w.far) != 4 {
		t.Errorf("numbers %d %d %d %d for %d files", l.monitor, l.vsock, l.files, l.cable, len(w.far))
	}
	for i, near := range []*net.UnixConn{w.monitor, w.vsock, w.files, w.cable} {
		if _, err := near.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		if _, err := w.far[i].Read(b[:]); err != nil || b[0] != byte(i) {
			t.Errorf("far end %d reads %d, %v", i, b[0], err)
		}
	}
	w.release()
	w.cut()
	bare := launch{}
	if w, err = bare.lay(); err != nil {
		t.Fatal(err)
	}
	if w.files != nil || w.cable != nil || len(w.far) != 2 {
		t.Errorf("a machine without files and cable has %d wires", len(w.far))
	}
	w.release()
	w.cut()
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestFramesOfAFailedStart is a QEMU that ends before it runs.
func TestFramesOfAFailedStart(t *testing.T) {
	var running atomic.Int32
	m := openFake(t, "bad kernel", func(cfg *vm.Config) {
		cfg.FileSystem, cfg.FileSystemTag = noFiles{}, "coracle"
		cfg.Network.Frames = func(ctx context.Context, cable net.Conn) error {
			running.Add(1)
			defer running.Add(-1)
			<-ctx.Done()
			return nil
		}
	})
	err := m.Start(t.Context())
	if !errors.Is(err, vm.ErrAssetCorrupt) || !strings.Contains(err.Error(), "PVH") {
		t.Errorf("start: %v", err)
	}
	if running.Load() != 0 {
		t.Error("the network outlives a start that failed")
	}
}
