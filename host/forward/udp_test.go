package forward

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"testing"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
)

// echoDatagrams answers each datagram with itself.
func echoDatagrams(_ guestapi.Connect, e *end) {
	defer e.Close()
	in := bufio.NewReader(e)
	buf := make([]byte, guestapi.MaxDatagram)
	for {
		n, err := guestapi.ReadDatagram(in, buf)
		if err != nil || guestapi.WriteDatagram(e, buf[:n]) != nil {
			return
		}
	}
}

// exchange sends b from a fresh socket and wants it back, from the very address that it asked: a connected socket takes no
// other.
func exchange(t *testing.T, network, address string, b []byte) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ask(t, c, b)
	return c
}

func ask(t *testing.T, c net.Conn, b []byte) {
	t.Helper()
	got := make([]byte, len(b)+1)
	for range 5 { // a datagram may be lost, also here
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(got)
		if err == nil {
			if !bytes.Equal(got[:n], b) {
				t.Fatalf("%d bytes came back of %d", n, len(b))
			}
			return
		}
	}
	t.Fatalf("no answer from %v", c.RemoteAddr())
}

func TestUDP(t *testing.T) {
	needIPv6(t)
	for _, setting := range []string{"127.0.0.1", "0.0.0.0"} {
		t.Run(setting, func(t *testing.T) {
			f, g := newForwarder(t, echoDatagrams)
			if err := f.SetAddress(t.Context(), setting); err != nil {
				t.Fatal(err)
			}
			port := freePort(t)
			open(t, f, guestapi.Forward{ID: 1, Protocol: "udp", Port: port, To: "172.17.0.2:53"})
			places := []string{"127.0.0.1", "::1"}
			if setting == "0.0.0.0" {
				places = append(places, "127.0.0.2", "127.1.2.3")
			}
			for _, place := range places {
				for _, n := range []int{0, 1, 1400, 60_000} {
					exchange(t, "udp", net.JoinHostPort(place, itoa(port)), bytes.Repeat([]byte{byte(n)}, n))
				}
			}
			g.mu.Lock()
			if g.seen[0].Protocol != "udp" || g.seen[0].To != "172.17.0.2:53" {
				t.Errorf("guest was told %+v", g.seen[0])
			}
			g.mu.Unlock()
		})
	}
}

// Clients are kept apart, each by a flow of its own, and the one that was silent longest goes when there are too many.
func TestFlows(t *testing.T) {
	f, g := newForwarder(t, echoDatagrams)
	f.flows.max = 10
	port := freePort(t)
	open(t, f, guestapi.Forward{ID: 1, Protocol: "udp", Address: "127.0.0.1", Port: port, To: "172.17.0.2:53"})
	address := "127.0.0.1:" + itoa(port)
	first := exchange(t, "udp", address, []byte("first"))
	second := exchange(t, "udp", address, []byte("second"))
	ask(t, first, []byte("again"))
	for i := range 9 {
		exchange(t, "udp", address, fmt.Appendf(nil, "client %d", i))
	}
	count := func() int {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.seen)
	}
	if n := count(); n != 11 {
		t.Errorf("%d streams for 11 clients", n)
	}
	ask(t, first, []byte("still the same stream"))
	if n := count(); n != 11 {
		t.Errorf("%d streams: the first client lost its flow", n)
	}
	ask(t, second, []byte("a new stream"))
	if n := count(); n != 12 {
		t.Errorf("%d streams: want one more for the client that lost its flow", n)
	}
	f.flows.mu.Lock()
	n, order := len(f.flows.byKey), f.flows.order.Len()
	for _, fl := range f.flows.byKey {
		fl.idle.Reset(0)
	}
	f.flows.mu.Unlock()
	if n != 10 || order != 10 {
		t.Errorf("%d flows, %d in order, want 10", n, order)
	}
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) && n > 0 {
		time.Sleep(5 * time.Millisecond)
		f.flows.mu.Lock()
		n = f.flows.order.Len()
		f.flows.mu.Unlock()
	}
	if n > 0 || f.flows.queued.Load() != 0 {
		t.Errorf("%d flows, %d bytes are left after all were idle", n, f.flows.queued.Load())
	}
	ask(t, first, []byte("and again"))
}
