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
	"io/fs"
	"net"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/erofs/go-erofs"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

// dialer opens a stream to a port of the guest.
type dialer func(ctx context.Context, port uint32) (net.Conn, error)

// way is one of those that lead into the guest.
type way struct {
	name string
	dial dialer
	lost int // how many of the streams of a crowd it may leave without an answer
}

// BenchmarkStreams measures streams into one guest over two ways: our vsock device, and QEMU's network for users with its
// forwarded TCP ports. The guest's program is the same on both. Each operation goes both ways, one after the other, so
// that whatever else the machine does falls on both; the figures are medians of each way's operations, with the ratio of
// the two (above 1 vsock is faster) and the machine's load average beside them.
func BenchmarkStreams(b *testing.B) {
	dir := imageDir(b, runtime.GOARCH)
	initrd := testInitrd(b, dir, runtime.GOARCH)
	addNetwork(b, dir, initrd)
	m := bootGuest(b, dir, initrd)
	compare(b, []way{
		{"vsock", m.Dial, 0},
		{"hostfwd", forwarded(b, m, vmtest.PortEcho, vmtest.PortCount, vmtest.PortZeros), clients*times - 1},
	})
}

// compare measures all that streams do, on each way.
func compare(b *testing.B, ways []way) {
	b.Run("RoundTrip", func(b *testing.B) {
		var run []func()
		for _, w := range ways {
			run = append(run, openEcho(b, w))
		}
		each(b, ways, milliseconds, run)
	})
	for _, measure := range []struct {
		name string
		unit unit
		run  func(*testing.B, way)
	}{
		{"Connect", milliseconds, connect}, {"Crowd", milliseconds, crowdOnce},
		{"ToGuest", megabytesPerSecond, toGuest}, {"FromGuest", megabytesPerSecond, fromGuest},
	} {
		b.Run(measure.name, func(b *testing.B) {
			var run []func()
			for _, w := range ways {
				run = append(run, func() { measure.run(b, w) })
			}
			each(b, ways, measure.unit, run)
		})
	}
}

// unit says how the time of one operation is told.
type unit struct {
	name string
	of   func(time.Duration) float64
}

var (
	milliseconds       = unit{"ms", func(d time.Duration) float64 { return d.Seconds() * 1e3 }}
	megabytesPerSecond = unit{"MB/s", func(d time.Duration) float64 { return bulk / 1e6 / d.Seconds() }}
)

// each is the benchmark of one operation on each way. The ratio is that of the last to the first.
func each(b *testing.B, ways []way, u unit, run []func()) {
	took := make([][]time.Duration, len(ways))
	for b.Loop() {
		for i := range ways {
			begin := time.Now()
			run[i]()
			took[i] = append(took[i], time.Since(begin))
		}
	}
	medians := make([]time.Duration, len(ways))
	for i, w := range ways {
		slices.Sort(took[i])
		medians[i] = took[i][len(took[i])/2]
		b.ReportMetric(u.of(medians[i]), w.name+"-"+u.name)
	}
	b.ReportMetric(medians[len(ways)-1].Seconds()/medians[0].Seconds(), "ratio")
	b.ReportMetric(loadAverage(), "load")
	b.ReportMetric(0, "ns/op")
}

// openEcho opens a stream on which the function that it returns sends one byte there and back.
func openEcho(b *testing.B, w way) func() {
	c, err := w.dial(b.Context(), vmtest.PortEcho)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	roundTrip := func() {
		if err := ping(c); err != nil {
			b.Fatal(err)
		}
	}
	roundTrip() // the guest's program has accepted it
	return roundTrip
}

// connect opens a stream, sends one byte there and back, and closes it.
func connect(b *testing.B, w way) {
	if err := connectAndPing(w.dial, 20*time.Second); err != nil {
		b.Fatal(err)
	}
}

// The crowd: so many clients, and how often each connects.
const clients, times = 50, 10

// crowdOnce has many clients connect at once, again and again. QEMU's forwarding leaves some without an answer, as it
// listens with a backlog of one; the time until they gave up counts.
func crowdOnce(b *testing.B, w way) {
	n, err := crowd(w.dial, clients, times, 5*time.Second)
	if n > w.lost {
		b.Fatalf("%s: %d of %d were not answered, one of them: %v", w.name, n, clients*times, err)
	}
	if n > 0 {
		b.Logf("%s: %d of %d were not answered within 5 s, one of them: %v", w.name, n, clients*times, err)
	}
}

// bulk is what one operation carries in the benchmarks of throughput, connecting and closing included.
const bulk = 16 << 20

// toGuest sends bulk and has the guest say that it came.
func toGuest(b *testing.B, w way) {
	c, err := w.dial(b.Context(), vmtest.PortCount)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 64<<10)
	for range bulk / len(buf) {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	if err := c.(vm.CloseWriter).CloseWrite(); err != nil {
		b.Fatal(err)
	}
	var n uint64
	if err := binary.Read(c, binary.BigEndian, &n); err != nil || n != bulk {
		b.Fatalf("guest read %d bytes, error %v; want %d", n, err, bulk)
	}
}

// fromGuest asks for bulk and reads it.
func fromGuest(b *testing.B, w way) {
	c, err := w.dial(b.Context(), vmtest.PortZeros)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if err := binary.Write(c, binary.BigEndian, uint64(bulk)); err != nil {
		b.Fatal(err)
	}
	n, err := 0, error(nil)
	for buf := make([]byte, 64<<10); err == nil; {
		var more int
		more, err = c.Read(buf)
		n += more
	}
	if err != io.EOF || n != bulk {
		b.Fatalf("read %d bytes, error %v; want %d", n, err, bulk)
	}
}

// ping sends one byte through an echo.
func ping(c net.Conn) error {
	p := []byte{'?'}
	if _, err := c.Write(p); err != nil {
		return err
	}
	p[0] = 0
	if _, err := io.ReadFull(c, p); err != nil {
		return err
	}
	if p[0] != '?' {
		return fmt.Errorf("echo of ? is %q", p)
	}
	return nil
}

func connectAndPing(dial dialer, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := dial(ctx, vmtest.PortEcho)
	if err != nil {
		return err
	}
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline)
	return errors.Join(ping(c), c.Close())
}

// crowd is clients that all at once connect and ping, times times each. It says how many of these failed, and one error.
func crowd(dial dialer, clients, times int, limit time.Duration) (int, error) {
	failures := make(chan error, clients*times)
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for range times {
				if err := connectAndPing(dial, limit); err != nil {
					failures <- err
				}
			}
		})
	}
	wg.Wait()
	close(failures)
	n := len(failures)
	return n, <-failures
}

// loadAverage is the machine's over the last minute, 0 where it does not tell.
func loadAverage() float64 {
	var load float64
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Sscan(string(b), &load)
	}
	return load
}

// addNetwork appends to the initramfs at path the modules for a virtio network, from the image's root, where the test
// guest looks for them.
func addNetwork(t testing.TB, dir, path string) {
	t.Helper()
	modules := networkModules(t, dir)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := bytes.NewBuffer(b)
	pad(all)
	member(all, "network", 0o040755, nil)
	for i, m := range modules {
		member(all, fmt.Sprintf("network/%02d.ko", i), 0o100644, m)
	}
	member(all, "TRAILER!!!", 0, nil)
	if err := os.WriteFile(path, all.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// networkModules are virtio_net and what it needs, in the order of loading.
func networkModules(t testing.TB, dir string) [][]byte {
	t.Helper()
	f, err := os.Open(path.Join(dir, "root.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	root, err := erofs.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	lists, err := fs.Glob(root, "usr/lib/modules/*/modules.coracle")
	if err != nil || len(lists) != 1 {
		t.Fatalf("lists of modules in the root: %q, %v; want one", lists, err)
	}
	list, err := fs.ReadFile(root, lists[0])
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	var names []string
	for line := range strings.Lines(string(list)) { // NAME CLASS PATH [DEP...]
		if f := strings.Fields(line); len(f) > 2 && f[0] != "#" {
			found[f[0]] = f[2]
			if f[0] == "virtio_net" {
				names = append(f[3:], f[0])
			}
		}
	}
	if names == nil {
		t.Fatal("the root's list of modules has no virtio_net")
	}
	var modules [][]byte
	for _, name := range names {
		b, err := fs.ReadFile(root, path.Join("usr", found[name]))
		if err != nil {
			t.Fatalf("read module %s: %v", name, err)
		}
		modules = append(modules, b)
	}
	return modules
}

// forwarded has QEMU's network for users forward a port of this host to each of the guest's TCP ports.
func forwarded(t testing.TB, m *machine, ports ...uint32) dialer {
	t.Helper()
	addresses := map[uint32]string{}
	for _, port := range ports {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addresses[port] = l.Addr().String()
		l.Close()
		human(t, m.mon, fmt.Sprintf("hostfwd_add net tcp:%s-10.0.2.15:%d", addresses[port], port))
	}
	return func(ctx context.Context, port uint32) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp4", addresses[port])
	}
}

// human runs a command of QEMU's monitor for people, one that says nothing where it succeeds.
func human(t testing.TB, m *monitor, command string) {
	t.Helper()
	const id = 1 << 50 // above those that the monitor will ever count to
	answer := make(chan message, 1)
	m.mu.Lock()
	m.waiting[id] = answer
	m.mu.Unlock()
	line, err := json.Marshal(map[string]any{
		"execute": "human-monitor-command", "id": id, "arguments": map[string]string{"command-line": command},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		t.Fatal(err)
	}
	select {
	case msg := <-answer:
		if said := string(msg.Return); msg.Error != nil || said != `""` {
			t.Fatalf("%s: %s, error %v", command, said, msg.Error)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("%s: no answer from the monitor", command)
	}
}
