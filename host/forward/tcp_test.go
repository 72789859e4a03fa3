package forward

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
)

func echo(_ guestapi.Connect, e *end) {
	if _, err := io.Copy(e, struct{ io.Reader }{e}); err == nil {
		_ = e.CloseWrite()
	}
	e.Close()
}

func dialTCP(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn)
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("this system does not tell which descriptors are open: run on Linux")
	}
	return len(list)
}

// Row 21 of the faults: many at once, nothing lost, nothing crossed, nothing left.
func TestThousandStreams(t *testing.T) {
	f, _ := newForwarder(t, echo)
	port := freePort(t)
	open(t, f, tcpForward(1, "127.0.0.1", port))
	before := descriptors(t)
	const n = 1000
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			c := dialTCP(t, "127.0.0.1:"+itoa(port))
			defer c.Close()
			data := make([]byte, 20_000+i)
			rng := rand.New(rand.NewPCG(7, uint64(i)))
			for j := range data {
				data[j] = byte(rng.Uint32())
			}
			go func() {
				_, _ = c.Write(data)
				_ = c.CloseWrite()
			}()
			h := sha256.New()
			if _, err := io.Copy(h, c); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
			if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
				t.Errorf("stream %d: what came back is not what was sent", i)
			}
		})
	}
	wg.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for descriptors(t) > before+5 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if after := descriptors(t); after > before+5 {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}

// Row 22: each direction ends by itself, and a reset is a reset on the other side.
func TestEnds(t *testing.T) {
	const large = 10 << 20
	readAll := func(t *testing.T, r io.Reader, want int) {
		t.Helper()
		n, err := io.Copy(io.Discard, r)
		if err != nil || int(n) != want {
			t.Errorf("read %d bytes, %v; want %d and the end", n, err, want)
		}
	}
	wantReset := func(t *testing.T, c net.Conn) {
		t.Helper()
		_, err := io.Copy(io.Discard, c)
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("client reads %v, want a reset", err)
		}
	}
	for _, tt := range []struct {
		name   string
		guest  func(*testing.T, *end)
		client func(*testing.T, *net.TCPConn)
	}{
		{"client ends first, then reads much", func(t *testing.T, e *end) {
			readAll(t, e, 4)
			if e.Reset() {
				t.Error("the guest sees a reset")
			}
			_, _ = e.Write(make([]byte, large))
			_ = e.CloseWrite()
		}, func(t *testing.T, c *net.TCPConn) {
			_, _ = c.Write([]byte("done"))
			_ = c.CloseWrite()
			readAll(t, c, large)
		}},
		{"server ends first, then reads much", func(t *testing.T, e *end) {
			_, _ = e.Write([]byte("done"))
			_ = e.CloseWrite()
			readAll(t, e, large)
			if e.Reset() {
				t.Error("the guest sees a reset")
			}
		}, func(t *testing.T, c *net.TCPConn) {
			readAll(t, c, 4)
			_, _ = c.Write(make([]byte, large))
			_ = c.CloseWrite()
		}},
		{"client resets", func(t *testing.T, e *end) {
			_, _ = io.Copy(io.Discard, e)
			if !e.Reset() {
				t.Error("the guest sees an orderly end")
			}
		}, func(_ *testing.T, c *net.TCPConn) {
			_, _ = c.Write([]byte("half a requ"))
			time.Sleep(20 * time.Millisecond)
			abort(c)
		}},
		{"client resets after its server's end", func(t *testing.T, e *end) {
			_ = e.CloseWrite()
			_, _ = io.Copy(io.Discard, e)
			if !e.Reset() {
				t.Error("the guest sees an orderly end")
			}
		}, func(t *testing.T, c *net.TCPConn) {
			readAll(t, c, 0)
			abort(c)
		}},
		{"server resets", func(_ *testing.T, e *end) {
			_, _ = io.ReadFull(e, make([]byte, 4))
			e.Close()
		}, func(t *testing.T, c *net.TCPConn) {
			_, _ = c.Write([]byte("quit"))
			wantReset(t, c)
		}},
		{"server resets after the client's end", func(t *testing.T, e *end) {
			readAll(t, e, 0)
			_, _ = e.Write([]byte("half an ans"))
			e.Close()
		}, func(t *testing.T, c *net.TCPConn) {
			_ = c.CloseWrite()
			wantReset(t, c)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			done := make(chan struct{})
			f, _ := newForwarder(t, func(_ guestapi.Connect, e *end) {
				defer close(done)
				tt.guest(t, e)
				e.Close()
			})
			port := freePort(t)
			open(t, f, tcpForward(1, "127.0.0.1", port))
			tt.client(t, dialTCP(t, "127.0.0.1:"+itoa(port)))
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Fatal("the guest's side did not end")
			}
		})
	}
}

// wantRefused wants a connection to come to nothing but a reset, be it so soon that there is no connection.
func wantRefused(t *testing.T, address string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err == nil {
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = io.ReadAll(c)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connection ended with %v, want a reset", err)
	}
}

func TestGuestRefuses(t *testing.T) {
	f, _ := newForwarder(t, func(_ guestapi.Connect, e *end) { e.Close() })
	port := freePort(t)
	open(t, f, tcpForward(1, "127.0.0.1", port))
	wantRefused(t, "127.0.0.1:"+itoa(port))
}

// A port scanner's or a dying client's resets leave nothing behind and the port usable.
func TestManyResets(t *testing.T) {
	f, _ := newForwarder(t, echo)
	port := freePort(t)
	open(t, f, tcpForward(1, "127.0.0.1", port))
	for range 300 {
		abort(dialTCP(t, "127.0.0.1:"+itoa(port)))
	}
	c := dialTCP(t, "127.0.0.1:"+itoa(port))
	fmt.Fprint(c, "still here")
	_ = c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "still here" {
		t.Errorf("%q, %v", b, err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for len(f.slots) > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if n := len(f.slots); n > 0 {
		t.Errorf("%d connections are left", n)
	}
}

func TestGuestCannotBeReached(t *testing.T) {
	f, _ := newForwarder(t, echo)
	f.cfg.Dial = failingDial
	port := freePort(t)
	open(t, f, tcpForward(1, "127.0.0.1", port))
	wantRefused(t, "127.0.0.1:"+itoa(port))
}

// A connection tells the guest who calls, where that is an address of use there.
func TestClientAddress(t *testing.T) {
	for from, want := range map[string]string{
		"127.0.0.1:5": "", "[::1]:5": "", "169.254.3.4:5": "", "[fe80::1%lo]:5": "", "[::ffff:192.168.1.9]:5": "192.168.1.9:5",
		"192.168.1.9:65535": "192.168.1.9:65535", "[2001:db8::1]:1": "[2001:db8::1]:1", "0.0.0.0:1": "", "224.0.0.1:7": "",
		"8.8.8.8:53": "8.8.8.8:53",
	} {
		if got := usable(mustAddrPort(from)); got != want {
			t.Errorf("usable(%s) = %q, want %q", from, got, want)
		}
	}
	f, g := newForwarder(t, echo)
	port := freePort(t)
	open(t, f, tcpForward(1, "127.0.0.1", port))
	c := dialTCP(t, "127.0.0.1:"+itoa(port))
	_ = c.CloseWrite()
	_, _ = io.ReadAll(c)
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.seen) != 1 || g.seen[0] != (guestapi.Connect{Protocol: "tcp", To: "172.17.0.2:80"}) {
		t.Errorf("guest was told %+v", g.seen)
	}
}

func TestUp(t *testing.T) {
	for _, n := range []int{0, 1, smallSize - 1, smallSize, smallSize + 1, largeSize, 3*largeSize + 7} {
		src := strings.Repeat("x", n)
		var dst bytes.Buffer
		if err := up(&dst, strings.NewReader(src)); err != nil || dst.String() != src {
			t.Errorf("%d bytes: %d came, %v", n, dst.Len(), err)
		}
	}
}
