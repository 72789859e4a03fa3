package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestTarget(t *testing.T) {
	for _, c := range []struct {
		to       string
		loopback bool
		want     string
	}{
		{"192.168.65.254:80", true, "127.0.0.1:80 [::1]:80"},
		{"192.168.65.254:80", false, ""},
		{"192.168.65.254:0", true, ""},
		{"192.168.65.1:80", true, ""},
		{"192.168.65.3:80", true, ""},
		{"192.168.65.77:80", true, ""},
		{"127.0.0.1:80", true, ""},
		{"127.1.2.3:80", true, ""},
		{"0.0.0.0:80", true, ""},
		{"0.1.2.3:80", true, ""},
		{"169.254.169.254:80", true, ""}, // hands out a cloud machine's credentials
		{"224.0.0.251:5353", true, ""},
		{"255.255.255.255:67", true, ""},
		{"240.0.0.1:80", true, ""},
		{"192.168.66.1:80", false, "192.168.66.1:80"},
		{"10.0.0.1:443", false, "10.0.0.1:443"},
		{"192.0.2.1:0", true, ""},
	} {
		n, err := New(Config{Loopback: c.loopback})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range n.target(netip.MustParseAddrPort(c.to)) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s, loopback %v: %v, want %s", c.to, c.loopback, got, c.want)
		}
	}
}

// listening is the set of TCP ports that somebody listens on at this machine's loopback.
func listening(t *testing.T) map[uint16]bool {
	t.Helper()
	ports := map[uint16]bool{}
	for _, name := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Skip("this system does not list its listeners in /proc/net/tcp")
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 3 && f[3] == "0A" {
				_, hex, _ := strings.Cut(f[1], ":")
				p, _ := strconv.ParseUint(hex, 16, 16)
				ports[uint16(p)] = true
			}
		}
	}
	return ports
}

// CVE-2025-9074 (Docker Desktop: the Engine API answered in the virtual network) and containers/gvisor-tap-vsock#78 (so did
// the network's own control API): every port of the gateway and of the host's alias is asked.
func TestScanCVE2025_9074(t *testing.T) {
	local := serve(t, echo).(*net.TCPAddr)
	scan := (*rawGuest).scan
	if coarse || testing.Short() {
		scan = func(g *rawGuest, addr netip.Addr) map[uint16]bool {
			found := g.scanPorts(addr, 1, 3000)
			maps.Copy(found, g.scanPorts(addr, local.Port, local.Port))
			return found
		}
	}
	t.Run("loopback off", func(t *testing.T) {
		g := newRawGuest(t, Config{})
		if got := scan(g, g.net.addr.gateway); len(got) != 1 || !got[53] {
			t.Errorf("the gateway listens on %v, want 53 alone", got)
		}
		if got := scan(g, g.net.addr.host); len(got) > 0 {
			t.Errorf("the host's alias listens on %v", got)
		}
	})
	t.Run("loopback on", func(t *testing.T) {
		g := newRawGuest(t, Config{Loopback: true})
		all := listening(t)
		got := scan(g, g.net.addr.host)
		maps.Copy(all, listening(t))
		if !got[uint16(local.Port)] {
			t.Errorf("port %d listens and was not found", local.Port)
		}
		for port := range got {
			if !all[port] {
				t.Errorf("port %d answers, where nobody listens on the host", port)
			}
		}
	})
}

// facts/faults.md, section 2, test 6, from crc-org/crc#2025: the setting counts, at once.
func TestLoopbackSetting(t *testing.T) {
	g := newGuest(t, Config{})
	at := g.host(serve(t, echo))
	udp := g.host(udpEcho(t, "127.0.0.1:0"))
	for _, on := range []bool{false, true, false} {
		g.net.SetLoopback(on)
		c, err := g.dial(at)
		if (err == nil) != on {
			t.Errorf("loopback %v: %v", on, err)
		}
		if err == nil {
			c.Close()
		} else if !contains(err, "refused") {
			t.Errorf("the refusal is %v", err)
		}
		if err := askEcho(g, udp); (err == nil) != on {
			t.Errorf("loopback %v, by datagram: %v", on, err)
		}
	}
}

// lan is an address of this machine's own that is not its loopback.
func lan(t *testing.T) netip.Addr {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && outside(p.Addr()) {
			return p.Addr()
		}
	}
	t.Skip("this machine has no address but its loopback; give it one, as by `ip addr add 192.0.2.7/32 dev lo`")
	return netip.Addr{}
}

// The host's other addresses are those of its network while the host may be reached, and closed with the loopback.
func TestHostsOwnAddresses(t *testing.T) {
	own := lan(t)
	l, err := net.Listen("tcp4", netip.AddrPortFrom(own, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	at := netip.MustParseAddrPort(l.Addr().String())
	udp := netip.MustParseAddrPort(udpEcho(t, netip.AddrPortFrom(own, 0).String()).String())
	g := newGuest(t, Config{Loopback: true})
	for _, on := range []bool{true, false} {
		g.net.SetLoopback(on)
		c, err := g.dial(at)
		if (err == nil) != on {
			t.Errorf("loopback %v: %v", on, err)
		}
		if err == nil {
			c.Close()
		}
		if err := askEcho(g, udp); (err == nil) != on {
			t.Errorf("loopback %v, by datagram: %v", on, err)
		}
	}
	l.(*net.TCPListener).SetDeadline(time.Now().Add(100 * time.Millisecond))
	if c, err := l.Accept(); err == nil { // the one that was allowed
		c.Close()
	}
	if _, err := l.Accept(); err == nil {
		t.Error("a connection that was refused reached the host")
	}
}

// A guest that writes the loopback's own addresses into its packets gets no further, and neither does one that uses addresses
// which are not its own.
func TestForgedAddresses(t *testing.T) {
	reached := make(chan bool, 100)
	port := uint16(serve(t, func(*net.TCPConn) { reached <- true }).(*net.TCPAddr).Port)
	g := newRawGuest(t, Config{Loopback: true})
	for _, to := range []string{"127.0.0.1", "127.9.9.9", "0.0.0.0", "192.168.65.1", "192.168.65.77"} {
		g.send(g.own(1000), netip.AddrPortFrom(netip.MustParseAddr(to), port), header.TCPFlagSyn, 1, 0)
	}
	host := netip.AddrPortFrom(g.net.addr.host, port)
	for _, from := range []string{"192.168.65.4", "192.168.65.1", "192.168.65.254", "10.0.0.1", "127.0.0.1", "0.0.0.0", "255.255.255.255"} {
		g.send(netip.AddrPortFrom(netip.MustParseAddr(from), 1000), host, header.TCPFlagSyn, 1, 0)
	}
	for {
		from, tcp, ok := g.next(200 * time.Millisecond)
		if !ok {
			break
		}
		if !tcp.Flags().Contains(header.TCPFlagRst) {
			t.Errorf("%s answered with flags %v", from, tcp.Flags())
		}
	}
	if len(reached) > 0 {
		t.Errorf("%d connections reached the host", len(reached))
	}
	g.send(g.own(1000), host, header.TCPFlagSyn, 1, 0) // the guest itself still does
	if _, tcp, ok := g.next(5 * time.Second); !ok || !tcp.Flags().Contains(header.TCPFlagSyn|header.TCPFlagAck) {
		t.Error("the guest's own connection was not made")
	}
}

// containers/gvisor-tap-vsock#127 and #387, faults.md row 22: SYN, SYN-ACK, RST a thousand times, and forwarding goes on.
func TestSynThenReset(t *testing.T) {
	g := newRawGuest(t, Config{Loopback: true})
	at := netip.AddrPortFrom(g.net.addr.host, uint16(serve(t, echo).(*net.TCPAddr).Port))
	before := descriptors(t)
	for i := range uint16(1000) {
		g.send(g.own(2000+i), at, header.TCPFlagSyn, 1, 0)
		if i%2 == 0 { // half of them do not wait for the answer
			_, tcp, ok := g.next(5 * time.Second)
			if !ok {
				t.Fatalf("connection %d was not answered", i)
			}
			if tcp.Flags().Contains(header.TCPFlagSyn) {
				g.send(g.own(tcp.DestinationPort()), at, header.TCPFlagRst, tcp.AckNumber(), 0)
			}
		} else {
			g.send(g.own(2000+i), at, header.TCPFlagRst, 2, 0)
		}
	}
	for { // those that were not waited for are answered too
		_, tcp, ok := g.next(300 * time.Millisecond)
		if !ok {
			break
		}
		if tcp.Flags().Contains(header.TCPFlagSyn) {
			g.send(g.own(tcp.DestinationPort()), at, header.TCPFlagRst, tcp.AckNumber(), 0)
		}
	}
	for range 100 {
		if descriptors(t) <= before+2 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if n := descriptors(t); n > before+2 {
		t.Errorf("%d descriptors are open, %d were before", n, before)
	}
	g.send(g.own(5000), at, header.TCPFlagSyn, 1, 0)
	if _, tcp, ok := g.next(5 * time.Second); !ok || !tcp.Flags().Contains(header.TCPFlagSyn|header.TCPFlagAck) {
		t.Error("no further connection was made")
	}
}

// Frames of any length and content end nothing but themselves.
func TestBadFrames(t *testing.T) {
	g := newRawGuest(t, Config{Loopback: true})
	at := netip.AddrPortFrom(g.net.addr.host, uint16(serve(t, echo).(*net.TCPAddr).Port))
	long := func(n int) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(n)), make([]byte, n)...) }
	for _, b := range [][]byte{
		long(0), long(1), long(13), long(14), long(70000), long(4 << 20),
		frame(header.IPv4ProtocolNumber, nil),
		frame(header.IPv4ProtocolNumber, bytes.Repeat([]byte{0x45}, 20)),
		frame(header.IPv4ProtocolNumber, segmentOf(g.own(1), at, header.TCPFlagSyn, 1, 0)[:30]),
		frame(header.IPv6ProtocolNumber, make([]byte, 60)),
		frame(header.ARPProtocolNumber, make([]byte, 5)),
		frame(0xffff, make([]byte, 100)),
	} {
		g.write(b)
	}
	g.send(g.own(1000), at, header.TCPFlagSyn, 1, 0)
	if _, tcp, ok := g.next(5 * time.Second); !ok || !tcp.Flags().Contains(header.TCPFlagSyn|header.TCPFlagAck) {
		t.Error("no connection was made after bad frames")
	}
}

func FuzzFrames(f *testing.F) {
	to := netip.MustParseAddrPort("192.168.65.254:9")
	f.Add(frame(header.IPv4ProtocolNumber, segmentOf(netip.MustParseAddrPort("192.168.65.3:9"), to, header.TCPFlagSyn, 1, 0)))
	f.Add(frame(header.ARPProtocolNumber, []byte("\x00\x01\x08\x00\x06\x04\x00\x01\x52\x54\x00\x12\x34\x56\xc0\xa8\x41\x03\x00\x00\x00\x00\x00\x00\xc0\xa8\x41\x01")))
	f.Add([]byte{0, 0, 0, 0})
	n, err := New(Config{})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		near, far := net.Pipe()
		go io.Copy(io.Discard, far)
		go func() {
			far.Write(b)
			far.Close()
		}()
		err := n.Frames(context.Background(), near)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
			t.Fatal(err)
		}
	})
}

// facts/faults.md, section 2, test 4, from CVE-2021-4024: nothing of ours listens on the host, whatever the guest does.
func TestNoListenerCVE2021_4024(t *testing.T) {
	g := newGuest(t, Config{Loopback: true})
	server, dgram := serve(t, echo), udpEcho(t, "127.0.0.1:0")
	g.mustDial(g.host(server)).Write([]byte("x"))
	if err := askEcho(g, g.host(dgram)); err != nil {
		t.Fatal(err)
	}
	theirs := map[string]bool{server.String(): true, dgram.String(): true}
	for _, c := range []struct{ file, state string }{{"tcp", "0A"}, {"tcp6", "0A"}, {"udp", "07"}, {"udp6", "07"}} {
		for _, at := range ourSockets(t, "/proc/net/"+c.file, c.state) {
			if !theirs[at] {
				t.Errorf("%s socket of ours listens on %s", c.file, at)
			}
		}
	}
}

// ourSockets are the local addresses of this process's sockets that are in a state.
func ourSockets(t *testing.T, file, state string) (found []string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Skip("this system does not list its sockets in /proc/net")
	}
	ours := map[string]bool{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "socket:[") {
			ours[strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]")] = true
		}
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 10 || f[3] != state || !ours[f[9]] {
			continue
		}
		addr, port, _ := strings.Cut(f[1], ":")
		p, _ := strconv.ParseUint(port, 16, 16)
		if a, err := strconv.ParseUint(addr, 16, 32); err == nil {
			addr = netip.AddrFrom4([4]byte(binary.LittleEndian.AppendUint32(nil, uint32(a)))).String()
		}
		found = append(found, addr+":"+strconv.Itoa(int(p)))
	}
	return found
}
