package network

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// udpEcho answers each datagram with itself.
func udpEcho(t testing.TB, at string) net.Addr {
	t.Helper()
	c, err := net.ListenPacket("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo(buf[:n], from)
		}
	})
	t.Cleanup(func() {
		c.Close()
		serving.Wait()
	})
	return c.LocalAddr()
}

// askEcho sends a datagram until it comes back, or is refused, of which a socket of the guest's tells in the call after.
func askEcho(g *guest, at netip.AddrPort) error {
	c := g.dialUDP(at)
	defer c.Close()
	buf := make([]byte, 10)
	var err error
	for range 20 {
		if _, err = c.Write([]byte("hello")); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		var n int
		if n, err = c.Read(buf); err == nil && string(buf[:n]) != "hello" {
			err = fmt.Errorf("%q came back", buf[:n])
		}
		if err == nil {
			return nil
		}
	}
	return err
}

func TestDatagrams(t *testing.T) {
	for _, mtu := range []int{1500, 0} { // the larger datagrams come in fragments
		for _, size := range []int{0, 1, 1400, 1472, 1473, 20000, 65507} {
			t.Run(fmt.Sprint(mtu, " ", size), func(t *testing.T) {
				g := newGuest(t, Config{Loopback: true, MTU: mtu})
				c := g.dialUDP(g.host(udpEcho(t, "127.0.0.1:0")))
				c.SetDeadline(time.Now().Add(10 * time.Second))
				sent := make([]byte, size)
				rand.NewChaCha8([32]byte{2}).Read(sent)
				if _, err := c.Write(sent); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, 65536)
				n, err := c.Read(got)
				if err != nil || !bytes.Equal(got[:n], sent) {
					t.Errorf("%d bytes came back: %v", n, err)
				}
			})
		}
	}
}

// The guest hears that nobody listens, as it would from a machine.
func TestDatagramRefused(t *testing.T) {
	g := newGuest(t, Config{Loopback: true})
	gone, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for _, to := range []netip.AddrPort{g.host(gone.LocalAddr()), netip.AddrPortFrom(g.net.addr.gateway, 67)} {
		c := g.dialUDP(to)
		var err error
		for range 100 { // a socket tells of it in the call after
			if _, err = c.Write([]byte("x")); err != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if !contains(err, "refused") {
			t.Errorf("%s: %v", to, err)
		}
	}
}

// containers/gvisor-tap-vsock#107: flows end, and there are never more than the limit.
func TestFlowsAreBounded(t *testing.T) {
	g := newGuest(t, Config{Loopback: true})
	at := g.host(udpEcho(t, "127.0.0.1:0"))
	before, files := runtime.NumGoroutine(), descriptors(t)
	for range maxUDP + 500 {
		c := g.dialUDP(at)
		c.Write([]byte("x"))
		c.Close()
	}
	if err := askEcho(g, at); err != nil {
		t.Errorf("after %d flows: %v", maxUDP+500, err)
	}
	expectGoroutines(t, before+maxUDP+10)
	if n := descriptors(t); n > files+maxUDP+10 {
		t.Errorf("%d descriptors are open, %d were before", n, files)
	}
}

func TestFlowsEvictTheIdle(t *testing.T) {
	var f flows[int]
	f.limit = 3
	made := map[int]*flow{}
	for i := range 3 {
		c, err := net.ListenUDP("udp4", nil)
		if err != nil {
			t.Fatal(err)
		}
		made[i] = &flow{conn: c}
		made[i].last.Store(int64(10 - i))
		f.put(i, made[i])
	}
	c, _ := net.ListenUDP("udp4", nil)
	f.put(3, &flow{conn: c})
	if f.get(2) != nil || f.get(0) == nil || f.get(1) == nil || f.get(3) == nil {
		t.Errorf("flows are %v, want all but the oldest", f.open)
	}
	if _, err := made[2].conn.Write(nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the socket of the oldest: %v", err)
	}
	f.close()
	if c, _ := net.ListenUDP("udp4", nil); f.put(4, &flow{conn: c}) {
		t.Error("a flow was added after the end")
	}
}

func TestFlowEndsWhenIdle(t *testing.T) {
	c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f := &flow{conn: c}
	f.touch()
	began := time.Now()
	f.receive(func() time.Duration { return 50 * time.Millisecond }, func([]byte, error) {})
	if d := time.Since(began); d < 50*time.Millisecond || d > 5*time.Second {
		t.Errorf("ended after %v", d)
	}
}

func TestPing(t *testing.T) { pings(t) }

func pings(t *testing.T) {
	t.Helper()
	own := lan(t)
	if c, err := dialPing(own); err != nil {
		t.Skipf("%v; allow it, as by `sysctl net.ipv4.ping_group_range='0 2147483647'`", err)
	} else {
		c.Close()
	}
	g := newRawGuest(t, Config{Loopback: true})
	for _, to := range []netip.Addr{g.net.addr.gateway, g.net.addr.host, own} {
		for seq := range uint16(3) {
			g.write(frame(header.IPv4ProtocolNumber, ping(g.net.addr.guest, to, 77, seq)))
			select {
			case b := <-g.got:
				ip, icmp := header.IPv4(b), header.ICMPv4(b[header.IPv4MinimumSize:])
				if netip.AddrFrom4(ip.SourceAddress().As4()) != to || icmp.Type() != header.ICMPv4EchoReply || icmp.Ident() != 77 ||
					icmp.Sequence() != seq || string(icmp.Payload()) != "ping" || header.ICMPv4Checksum(icmp[:8], 0) == 0 {
					t.Errorf("ping of %s was answered by %x", to, b)
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("ping of %s was not answered", to)
			}
		}
	}
	g.net.SetLoopback(false)
	g.write(frame(header.IPv4ProtocolNumber, ping(g.net.addr.guest, own, 78, 0)))
	select {
	case b := <-g.got:
		t.Errorf("a ping of the host's own address was answered while loopback is off: %x", b)
	case <-time.After(200 * time.Millisecond):
	}
}

func ping(from, to netip.Addr, id, seq uint16) []byte {
	b := make([]byte, header.IPv4MinimumSize+header.ICMPv4MinimumSize, 100)
	b = append(b, "ping"...)
	ip, icmp := header.IPv4(b), header.ICMPv4(b[header.IPv4MinimumSize:])
	ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(header.ICMPv4ProtocolNumber), SrcAddr: address(from), DstAddr: address(to)})
	ip.SetChecksum(^ip.CalculateChecksum())
	icmp.SetType(header.ICMPv4Echo)
	icmp.SetIdent(id)
	icmp.SetSequence(seq)
	icmp.SetChecksum(header.ICMPv4Checksum(icmp, 0))
	return b
}
