package network

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"
)

func TestEcho(t *testing.T) {
	for _, mtu := range []int{576, 1500, 0} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			g := newGuest(t, Config{Loopback: true, MTU: mtu})
			c := g.mustDial(g.host(serve(t, echo)))
			sent := make([]byte, 300<<10)
			rand.NewChaCha8([32]byte{1}).Read(sent)
			go func() {
				c.Write(sent)
				c.CloseWrite()
			}()
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("%d of %d bytes came back: %v", len(got), len(sent), err)
			}
		})
	}
}

// faults.md row 22: the client ends its direction first, then reads a lot.
func TestHalfCloseByGuest(t *testing.T) {
	const size = 10 << 20
	g := newGuest(t, Config{Loopback: true})
	c := g.mustDial(g.host(serve(t, func(c *net.TCPConn) {
		sum := sha256.New()
		io.Copy(sum, c) // to the guest's end
		c.Write(sum.Sum(nil))
		c.Write(make([]byte, size))
	})))
	c.Write([]byte("question"))
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	want := sha256.Sum256([]byte("question"))
	if err != nil || len(got) != size+len(want) || !bytes.Equal(got[:len(want)], want[:]) {
		t.Fatalf("%d bytes after the half-close: %v", len(got), err)
	}
}

// faults.md row 22: the server ends its direction first.
func TestHalfCloseByHost(t *testing.T) {
	g := newGuest(t, Config{Loopback: true})
	heard := make(chan string, 1)
	c := g.mustDial(g.host(serve(t, func(c *net.TCPConn) {
		c.Write([]byte("bye"))
		c.CloseWrite()
		b, _ := io.ReadAll(c)
		heard <- string(b)
	})))
	if b, err := io.ReadAll(c); err != nil || string(b) != "bye" {
		t.Fatalf("guest read %q, %v", b, err)
	}
	c.Write([]byte("still here"))
	c.CloseWrite()
	if got := <-heard; got != "still here" {
		t.Errorf("host read %q", got)
	}
}

// faults.md row 22: a reset is a reset at the other end, not an end.
func TestReset(t *testing.T) {
	t.Run("by host", func(t *testing.T) {
		g := newGuest(t, Config{Loopback: true})
		c := g.mustDial(g.host(serve(t, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 1))
			c.SetLinger(0)
		})))
		c.Write([]byte("x"))
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); !contains(err, "reset") {
			t.Errorf("guest read: %v", err)
		}
	})
	t.Run("by guest", func(t *testing.T) {
		g := newGuest(t, Config{Loopback: true})
		heard := make(chan error, 1)
		ready := make(chan bool)
		c := g.mustDial(g.host(serve(t, func(c *net.TCPConn) {
			close(ready)
			_, err := c.Read(make([]byte, 1))
			heard <- err
		})))
		<-ready
		c.SetDeadline(time.Now())
		g.abort(c)
		select {
		case err := <-heard:
			if !contains(err, "reset") {
				t.Errorf("host read: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("host heard nothing")
		}
	})
}

// faults.md row 21: nothing lost, nothing crossed, nothing left.
func TestThousandStreams(t *testing.T) {
	const size = 64 << 10
	streams := 1000
	if coarse {
		streams = 100
	}
	g := newGuest(t, Config{Loopback: true})
	at := g.host(serve(t, echo))
	g.mustDial(at).Close()
	before := descriptors(t)
	var all sync.WaitGroup
	fails := make(chan error, streams)
	for i := range streams {
		all.Go(func() { fails <- sendAndCompare(g, at, byte(i), size) })
	}
	all.Wait()
	lost := 0
	for range streams {
		if err := <-fails; err != nil {
			if lost++; lost < 5 {
				t.Error(err)
			}
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d streams were not what was sent", lost, streams)
	}
	for range 100 {
		if descriptors(t) <= before+1 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("%d descriptors are open, %d were before", descriptors(t), before)
}

// sendAndCompare sends bytes of its own to an echo and compares what comes back.
func sendAndCompare(g *guest, at netip.AddrPort, seed byte, size int) error {
	c, err := g.dial(at)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(60 * time.Second))
	sent := make([]byte, size)
	rand.NewChaCha8([32]byte{seed, byte(c.LocalAddr().(*net.TCPAddr).Port)}).Read(sent)
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("%d bytes came back that are not the %d sent", len(got), len(sent))
	}
	return nil
}

// What listens on the host's ::1 alone, as newer development servers do, is at the same place.
func TestLoopbackOfIPv6(t *testing.T) {
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("this machine has no IPv6: %v", err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Write([]byte("six"))
			c.Close()
		}
	}()
	g := newGuest(t, Config{Loopback: true})
	if b, err := io.ReadAll(g.mustDial(g.host(l.Addr()))); err != nil || string(b) != "six" {
		t.Errorf("%q, %v", b, err)
	}
}

// faults.md row 21: a connection that waits costs little: here both ends of it, and the guest's besides.
func TestIdleConnectionsAreSmall(t *testing.T) {
	if coarse {
		t.Skip("memory under the race detector says nothing; leave out -race")
	}
	const conns, each = 500, 96 << 10 // a third is what the echo itself copies by
	g := newGuest(t, Config{Loopback: true})
	at := g.host(serve(t, echo))
	used := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // pools are emptied by the second
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := used()
	block := make([]byte, 100<<10)
	for range conns {
		c := g.mustDial(at)
		go c.Write(block)
		if _, err := io.ReadFull(c, make([]byte, len(block))); err != nil {
			t.Fatal(err)
		}
	}
	if got := (int64(used()) - int64(before)) / conns; got > each {
		t.Errorf("each connection that waits holds %d KiB", got>>10)
	} else {
		t.Logf("each connection that waits holds %d KiB", got>>10)
	}
}
