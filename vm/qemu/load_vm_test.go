//go:build linux

package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

// The load: streams that are open at the same moment.
const (
	dialled  = 1000 // opened by the host
	accepted = 50   // opened by the guest, beside them
	// afterwards is how many come and go when all that is over. Together they are more than the device has room for, so it
	// refuses some if it forgot to let go of the others.
	afterwards = 3200
	callPort   = 3000 // the host's, where the guest opens its streams to
)

// bootGuest boots a machine with initrd and returns when its guest behaves.
func bootGuest(t testing.TB, dir, initrd string, changes ...func(*vm.Config)) *machine {
	t.Helper()
	console := filepath.Join(t.TempDir(), "console.log")
	cfg := vm.Config{
		Name: "load", CPUs: 2, Memory: 1 << 30, Kernel: kernel(dir), Initrd: initrd, Console: console,
		Disks: []vm.Disk{{Path: filepath.Join(dir, "root.erofs"), Serial: "coracle-root", ReadOnly: true}},
	}
	for _, change := range changes {
		change(&cfg)
	}
	opened, err := New(vmtest.Logger(false), "").Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	m := opened.(*machine)
	startGuest(t, m)
	return m
}

// startGuest starts a machine, to be stopped at the test's end, and returns when its guest behaves.
func startGuest(t testing.TB, m *machine) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := m.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	ready, err := m.Listen(vmtest.PortReady)
	if err != nil {
		t.Fatal(err)
	}
	defer ready.Close()
	defer time.AfterFunc(2*time.Minute, func() { ready.Close() }).Stop()
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := ready.Accept()
	if err != nil {
		said, _ := os.ReadFile(m.Console())
		t.Fatalf("guest did not connect: %v; its console:\n%s", err, said[max(0, len(said)-4096):])
	}
	c.Close()
}

// TestLoad opens a thousand streams and more at once, each with contents of its own, and then expects nothing to be left.
func TestLoad(t *testing.T) {
	dir := imageDir(t, runtime.GOARCH)
	m := bootGuest(t, dir, testInitrd(t, dir, runtime.GOARCH))
	deadline := time.Now().Add(4 * time.Minute)
	ctx, cancel := context.WithDeadline(t.Context(), deadline)
	defer cancel()
	before := takeStock(t, m)

	begin := time.Now()
	conns := openAll(ctx, t, m)
	if held := takeStock(t, m).guestFiles - before.guestFiles; held < dialled+accepted {
		t.Errorf("guest holds %d streams, want %d", held, dialled+accepted)
	}
	opened := time.Since(begin)

	begin = time.Now()
	var exchanges errgroup.Group
	var carried atomic.Int64
	for i, c := range conns {
		c.SetDeadline(deadline)
		exchanges.Go(func() error {
			n, err := exchange(c, uint64(i))
			if err != nil {
				err = fmt.Errorf("stream %d, from %v to %v: %w", i, c.LocalAddr(), c.RemoteAddr(), err)
				t.Error(err)
			}
			carried.Add(n)
			return err
		})
	}
	if exchanges.Wait() != nil {
		t.FailNow()
	}
	t.Logf("%d streams were open after %v and carried %d bytes there and back in %v more; load average %.1f",
		len(conns), opened.Round(time.Millisecond), carried.Load(), time.Since(begin).Round(time.Millisecond), loadAverage())

	before.restored(t, m)
	if err := connectAndPing(m.Dial, time.Minute); err != nil {
		t.Errorf("one more stream: %v", err)
	}
	if n, err := crowd(m.Dial, 50, afterwards/50, time.Minute); n > 0 {
		t.Errorf("%d of %d more streams, one of them: %v", n, afterwards, err)
	}
	before.restored(t, m)
}

// openAll opens all streams at once and returns them with the guest's program at the other end of each.
func openAll(ctx context.Context, t *testing.T, m *machine) []net.Conn {
	t.Helper()
	deadline, _ := ctx.Deadline()
	conns := make([]net.Conn, dialled+accepted)
	l, err := m.Listen(callPort)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var opening errgroup.Group
	for i := range conns {
		opening.Go(func() (err error) {
			if i < dialled {
				conns[i], err = m.Dial(ctx, vmtest.PortEcho)
			} else {
				conns[i], err = l.Accept()
			}
			if err != nil {
				return fmt.Errorf("open stream %d: %w", i, err)
			}
			t.Cleanup(func() { conns[i].Close() })
			conns[i].SetDeadline(deadline)
			return ping(conns[i])
		})
	}
	for range accepted {
		opening.Go(func() error {
			err := call(ctx, m)
			if err != nil {
				l.Close() // else an Accept waits for it
			}
			return err
		})
	}
	if err := opening.Wait(); err != nil {
		t.Fatal(err)
	}
	return conns
}

// call has the guest open a stream to callPort and echo on it.
func call(ctx context.Context, m *machine) error {
	c, err := m.Dial(ctx, vmtest.PortCall)
	if err != nil {
		return err
	}
	defer c.Close()
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	if err := json.NewEncoder(c).Encode(vmtest.Call{Port: callPort, Behave: vmtest.PortEcho}); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err == nil && string(answer) != "ok" {
		err = fmt.Errorf("guest says %q", answer)
	}
	return err
}

// exchange sends the contents of stream i through an echo, half-closes, and checks every byte that comes back and that
// nothing comes after them. It says how many that were.
func exchange(c net.Conn, i uint64) (int64, error) {
	contents, size := contentsOf(i)
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, contents)
		sent <- errors.Join(err, c.(vm.CloseWriter).CloseWrite())
	}()
	want, _ := contentsOf(i)
	if err := same(c, want); err != nil {
		c.Close() // else the sender may wait for a reader
		<-sent
		return 0, err
	}
	return size, errors.Join(<-sent, c.Close())
}

// contentsOf are 16 to 256 KiB that no other stream has.
func contentsOf(i uint64) (io.Reader, int64) {
	var seed [32]byte
	binary.BigEndian.PutUint64(seed[:], i+1)
	size := 16<<10 + rand.New(rand.NewPCG(1, i)).Int64N(240<<10+1)
	return io.LimitReader(rand.NewChaCha8(seed), size), size
}

// same says where two streams differ, their lengths included.
func same(got, want io.Reader) error {
	a, b := make([]byte, 16<<10), make([]byte, 16<<10)
	for off := 0; ; off += len(b) {
		n, gotErr := io.ReadFull(got, a)
		m, wantErr := io.ReadFull(want, b)
		switch {
		case gotErr != wantErr:
			return fmt.Errorf("after %d bytes: %v, want %v after %d", off+n, gotErr, wantErr, off+m)
		case n != m || !bytes.Equal(a[:n], b[:m]):
			return fmt.Errorf("other contents within the %d bytes at %d", m, off)
		case wantErr != nil: // the end of both
			return nil
		}
	}
}

// holdings is what this process and the guest's program hold, and must give back.
type holdings struct{ goroutines, files, guestFiles int }

func takeStock(t testing.TB, m *machine) holdings {
	t.Helper()
	c, err := m.Dial(t.Context(), vmtest.PortFiles)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	var n uint64
	if err := binary.Read(c, binary.BigEndian, &n); err != nil {
		t.Fatalf("ask the guest for its open files: %v", err)
	}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return holdings{runtime.NumGoroutine(), len(files), int(n)}
}

// restored fails t if more is held than before, and goes on being so for 20 s.
func (before holdings) restored(t *testing.T, m *machine) {
	t.Helper()
	now := takeStock(t, m)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); now = takeStock(t, m) {
		if now.goroutines <= before.goroutines && now.files <= before.files && now.guestFiles <= before.guestFiles {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("before the load %+v, after it %+v", before, now)
}
