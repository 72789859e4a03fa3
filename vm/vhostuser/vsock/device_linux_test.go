package vsock

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/nettest"

	"github.com/coracle-engine/coracle/vm"
)

const (
	echoPort = 7
	hostPort = 99
)

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewPCG(seed, 0)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b
}

// checkEcho sends b over an echoing stream while it reads the answer, with half-close.
func checkEcho(c net.Conn, b []byte) error {
	errs := make(chan error, 1)
	go func() {
		_, err := c.Write(b)
		if err == nil {
			err = c.(vm.CloseWriter).CloseWrite()
		}
		errs <- err
	}()
	got, err := io.ReadAll(c)
	if err == nil && !bytes.Equal(got, b) {
		err = fmt.Errorf("sent %d bytes, got %d others", len(b), len(got))
	}
	return errors.Join(err, <-errs, c.Close())
}

func TestEchoOfEverySize(t *testing.T) {
	d := newDevice(t)
	g := boot(t, d)
	g.serve(echoPort, echoServer)
	for _, n := range []int{0, 1, 100, rxSize, rxSize + 1, maxPayload, maxPayload + 1, bufferSize, 3<<20 + 5} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			if err := checkEcho(dial(t, d, echoPort), random(uint64(n), n)); err != nil {
				t.Error(err)
			}
		})
	}
	waitFor(t, "streams to end", func() bool { return streams(d) == 0 })
}

func streams(d *Device) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.conns)
}

func TestThousandStreams(t *testing.T) {
	for _, from := range []string{"host", "guest"} {
		t.Run(from, func(t *testing.T) {
			d := newDevice(t)
			l := listen(t, d, hostPort)
			g := boot(t, d)
			g.serve(echoPort, echoServer)
			const n = 1000
			var wg sync.WaitGroup
			open := make(chan struct{})
			check := func(i int, c net.Conn) {
				<-open
				if err := checkEcho(c, random(uint64(i), 5000+i)); err != nil {
					t.Errorf("stream %d: %v", i, err)
				}
			}
			for i := range n {
				if from == "host" {
					c := dial(t, d, echoPort)
					wg.Go(func() { check(i, c) })
					continue
				}
				s, err := g.dial(hostPort)
				if err != nil {
					t.Fatal(err)
				}
				wg.Go(func() { echoServer(s) })
				c, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				wg.Go(func() { check(i, c) })
			}
			if got := streams(d); got != n {
				t.Errorf("%d streams are open", got)
			}
			close(open)
			wg.Wait()
			waitFor(t, "streams to end", func() bool { return streams(d) == 0 })
		})
	}
}

func TestHalfClose(t *testing.T) {
	d := newDevice(t)
	g := boot(t, d)
	g.serve(1, func(s *socket) { // ends its direction first, then reads
		s.Write([]byte("first"))
		s.CloseWrite()
		b, err := io.ReadAll(s)
		if err != nil || string(b) != "second" {
			t.Errorf("guest read %q, %v", b, err)
		}
		s.Close()
	})
	c := dial(t, d, 1)
	if b, err := io.ReadAll(c); err != nil || string(b) != "first" {
		t.Errorf("host read %q, %v", b, err)
	}
	if _, err := c.Write([]byte("second")); err != nil {
		t.Error(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
	if _, err := c.Write([]byte("third")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Write after CloseWrite: %v", err)
	}
	waitFor(t, "the guest's close", func() bool { return streams(d) == 0 })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestGuestStopsReceiving(t *testing.T) {
	d := newDevice(t)
	g := boot(t, d)
	told := make(chan struct{})
	g.serve(1, func(s *socket) {
		<-told
		s.Shutdown(shutReceive)
		s.Write([]byte("still sending"))
		s.CloseWrite()
	})
	c := dial(t, d, 1)
	errs := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 1<<20))
		errs <- err
	}()
	close(told)
	if err := <-errs; !errors.Is(err, syscall.EPIPE) {
		t.Errorf("Write to a guest that receives no more: %v", err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "still sending" {
		t.Errorf("read %q, %v", b, err)
	}
}

func TestRefused(t *testing.T) {
	d := newDevice(t)
	g := boot(t, d)
	if _, err := d.Dial(context.Background(), 1); !errors.Is(err, vm.ErrRefused) {
		t.Errorf("Dial to a closed port: %v", err)
	}
	if _, err := g.dial(1); err == nil {
		t.Error("guest's dial to a closed port succeeded")
	}
	listen(t, d, 5)
	if _, err := d.Listen(5); !errors.Is(err, vm.ErrPortInUse) {
		t.Errorf("Listen on a taken port: %v", err)
	}
	if n := streams(d); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// A guest's application that reads nothing stops its own stream, and no other.
func TestCredit(t *testing.T) {
	d := newDevice(t)
	g := boot(t, d)
	g.serve(echoPort, echoServer)
	read := make(chan struct{})
	sum := make(chan [32]byte, 1)
	g.serve(1, func(s *socket) {
		<-read
		b, _ := io.ReadAll(s)
		sum <- sha256.Sum256(b)
	})
	stuck := dial(t, d, 1)
	data := random(1, 2<<20)
	wrote := make(chan error, 1)
	go func() {
		_, err := stuck.Write(data)
		wrote <- errors.Join(err, stuck.CloseWrite())
	}()
	waitFor(t, "credit to be used up", func() bool {
		stuck.mu.Lock()
		defer stuck.mu.Unlock()
		return stuck.w.cnt == guestBuffer
	})
	if err := checkEcho(dial(t, d, echoPort), random(2, 1<<20)); err != nil {
		t.Errorf("beside a stuck stream: %v", err)
	}
	select {
	case err := <-wrote:
		t.Fatalf("Write returned early: %v", err)
	default:
	}
	close(read)
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	if got := <-sum; got != sha256.Sum256(data) {
		t.Error("guest read something else")
	}
}

// A host's application that reads nothing stops its own stream, and no other; the guest is told only what was read.
func TestUnreadStream(t *testing.T) {
	d := newDevice(t)
	g := boot(t, d)
	g.serve(echoPort, echoServer)
	data := random(3, 2<<20)
	g.serve(1, func(s *socket) {
		s.Write(data)
		s.Close()
	})
	c := dial(t, d, 1)
	waitFor(t, "the buffer to fill", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.r.buf.n == bufferSize
	})
	if err := checkEcho(dial(t, d, echoPort), random(4, 1<<20)); err != nil {
		t.Errorf("beside an unread stream: %v", err)
	}
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil || !bytes.Equal(b.Bytes(), data) {
		t.Errorf("read %d other bytes, %v", b.Len(), err)
	}
}

// Many small writes to a guest that reads none of them must neither block nor overrun the guest's count of packets.
func TestSmallWritesAreGathered(t *testing.T) {
	d := newDevice(t)
	g := boot(t, d)
	read := make(chan struct{})
	g.serve(1, func(s *socket) {
		<-read
		echoServer(s)
	})
	c := dial(t, d, 1)
	c.SetDeadline(time.Now().Add(20 * time.Second))
	var want []byte
	for i := range 5000 {
		b := []byte{byte(i), byte(i >> 8)}
		want = append(want, b...)
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(read)
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d other bytes, %v", len(got), err)
	}
}

// Streams share the guest's buffers: when there are none, all wait, and then all go on.
func TestStarvedGuest(t *testing.T) {
	d := newDevice(t)
	g := boot(t, d)
	g.serve(echoPort, echoServer)
	var cs []net.Conn
	for range 100 {
		cs = append(cs, dial(t, d, echoPort))
	}
	g.starve(true)
	var wg sync.WaitGroup
	for i, c := range cs {
		wg.Go(func() {
			if err := checkEcho(c, random(uint64(i), 20000)); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		})
	}
	waitFor(t, "streams to wait for buffers", func() bool {
		d.out.mu.Lock()
		defer d.out.mu.Unlock()
		return len(d.out.waiting) > 50
	})
	g.starve(false)
	wg.Wait()
}

func TestDialWaitsForTheGuest(t *testing.T) {
	d := newDevice(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := d.Dial(ctx, echoPort); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Dial without a guest: %v", err)
	}
	got := make(chan error, 1)
	go func() {
		c, err := d.Dial(context.Background(), echoPort)
		if err == nil {
			err = checkEcho(c, []byte("hello"))
		}
		got <- err
	}()
	g := boot(t, d)
	g.mu.Lock()
	g.listen[echoPort] = echoServer
	g.mu.Unlock()
	if err := <-got; err != nil && !errors.Is(err, vm.ErrRefused) { // refused: the driver was up before the listener
		t.Error(err)
	}
}

func TestReconnect(t *testing.T) {
	d := newDevice(t)
	l := listen(t, d, hostPort)
	for range 3 {
		g := boot(t, d)
		g.serve(echoPort, echoServer)
		if err := checkEcho(dial(t, d, echoPort), random(5, 1<<18)); err != nil {
			t.Error(err)
		}
		if _, err := g.dial(hostPort); err != nil {
			t.Error(err)
		}
		in, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c := dial(t, d, echoPort)
		g.shutdown()
		for _, c := range []net.Conn{c, in} {
			if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Read after the guest has gone: %v", err)
			}
			if _, err := c.Write([]byte{1}); err == nil {
				t.Error("Write after the guest has gone succeeded")
			}
		}
		waitFor(t, "Serve to end", func() bool {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.stop == nil
		})
	}
}

// QEMU's stop and cont keep streams; a new driver in the guest knows none of them.
func TestPauseAndReboot(t *testing.T) {
	d := newDevice(t)
	g := boot(t, d)
	g.serve(echoPort, echoServer)
	c := dial(t, d, echoPort)
	for range 3 {
		g.mu.Lock()
		rx, tx := g.rx.Stop(), g.tx.Stop()
		g.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		if _, err := d.Dial(ctx, echoPort); err == nil {
			t.Error("Dial into a paused guest succeeded")
		}
		cancel()
		wrote := make(chan error, 1)
		go func() {
			_, err := c.Write([]byte("ping"))
			wrote <- err
		}()
		g.mu.Lock()
		g.rx.Start(rx)
		g.tx.Start(tx)
		g.mu.Unlock()
		b := make([]byte, 4)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "ping" {
			t.Fatalf("after a pause: %q, %v", b, err)
		}
		if err := <-wrote; err != nil {
			t.Error(err)
		}
	}
	g.mu.Lock()
	g.rx.Stop()
	g.tx.Stop()
	g.mu.Unlock()
	g.f.NewQueue(0, 128).Start(0)
	g.f.NewQueue(1, 128).Start(0)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Read after the guest has rebooted: %v", err)
	}
}

func TestCloseUnblocksEverything(t *testing.T) {
	before := runtime.NumGoroutine()
	files := openFiles(t)
	func() {
		d := newDevice(t)
		g := boot(t, d)
		g.serve(1, func(*socket) {})
		l := listen(t, d, hostPort)
		var wg sync.WaitGroup
		for range 3 {
			c := dial(t, d, 1)
			wg.Go(func() { io.Copy(io.Discard, c) })
			wg.Go(func() { c.Write(make([]byte, 1<<20)) })
		}
		wg.Go(func() { l.Accept() })
		c := dial(t, d, 1)
		wg.Go(func() { c.Read(make([]byte, 1)) })
		wg.Go(func() { c.Write(make([]byte, 1<<20)) })
		time.Sleep(10 * time.Millisecond)
		c.Close()
		d.Close()
		wg.Go(func() {
			if _, err := d.Dial(context.Background(), 1); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Dial after Close: %v", err)
			}
			if _, err := d.Listen(1); !errors.Is(err, net.ErrClosed) {
				t.Errorf("Listen after Close: %v", err)
			}
		})
		wg.Wait()
		d.Close()
		g.shutdown()
	}()
	waitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	if n := openFiles(t); n > files+1 { // the guest's memory is the test's until its end
		t.Errorf("%d files are open, %d were", n, files)
	}
}

func openFiles(t *testing.T) int {
	es, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(es)
}

// TestConformance runs the standard suite on a pair of streams of ours that a relay in the guest joins.
func TestConformance(t *testing.T) {
	d := newDevice(t)
	l := listen(t, d, hostPort)
	g := boot(t, d)
	g.serve(1, func(a *socket) {
		b, err := g.dial(hostPort)
		if err != nil {
			a.Close()
			return
		}
		var wg sync.WaitGroup
		for _, pair := range [][2]*socket{{a, b}, {b, a}} {
			wg.Go(func() {
				io.Copy(struct{ io.Writer }{pair[0]}, struct{ io.Reader }{pair[1]})
				pair[0].CloseWrite()
			})
		}
		wg.Wait()
		a.Close()
		b.Close()
	})
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		c1, err := d.Dial(context.Background(), 1)
		if err != nil {
			return nil, nil, nil, err
		}
		c2, err := l.Accept()
		return c1, c2, func() { c1.Close(); c2.Close() }, err
	})
}
