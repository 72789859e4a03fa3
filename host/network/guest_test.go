package network

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// guest is a machine at the other end of a cable: a TCP/IP stack of its own.
type guest struct {
	t     testing.TB
	net   *Network
	stack *stack.Stack
	cable *cable
}

const guestMAC = tcpip.LinkAddress("\x52\x54\x00\x12\x34\x56")

// socketpair is a cable, as QEMU has it.
func socketpair(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "cable"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// plug starts a network and gives its Frames one end of a cable; it returns the other end. The test fails where Frames does,
// or where something is left of it.
func plug(t testing.TB, cfg Config) (*Network, net.Conn) {
	t.Helper()
	before := runtime.NumGoroutine()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	near, far := socketpair(t)
	served := make(chan error, 1)
	go func() { served <- n.Frames(context.Background(), near) }()
	t.Cleanup(func() {
		n.Close()
		if err := <-served; err != nil {
			t.Errorf("Frames: %v", err)
		}
		expectGoroutines(t, before+1) // the reader of the other end may still be
	})
	return n, far
}

// expectGoroutines waits a moment for goroutines to end.
func expectGoroutines(t testing.TB, most int) {
	t.Helper()
	for range 200 {
		if runtime.NumGoroutine() <= most {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	all := string(buf[:runtime.Stack(buf, true)])
	t.Errorf("%d goroutines are left of %d:\n%s", runtime.NumGoroutine(), most, all[:min(len(all), 20000)])
}

func newGuest(t testing.TB, cfg Config) *guest {
	t.Helper()
	n, far := plug(t, cfg)
	everything := func(tcpip.NetworkProtocolNumber, []byte) bool { return true }
	g := &guest{t: t, net: n, cable: newCable(far, n.mtu, guestMAC, everything)}
	g.cable.remote = gatewayMAC
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := g.stack.CreateNIC(nicID, g.cable); err != nil {
		t.Fatal(err)
	}
	// As much as Linux sends of a connection before it hears anything.
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: 128 << 10, Max: largeWindow}
	g.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &send)
	own := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: address(n.addr.guest).WithPrefix()}
	if err := g.stack.AddProtocolAddress(nicID, own, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	g.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	var moving sync.WaitGroup
	moving.Go(g.cable.transmit)
	moving.Go(func() { g.cable.receive() })
	t.Cleanup(func() {
		g.stack.Close()
		g.cable.stop(io.EOF)
		moving.Wait()
		g.stack.Destroy()
	})
	return g
}

func full(to netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: address(to.Addr()), Port: to.Port()}
}

// dial opens a TCP connection from the guest.
func (g *guest) dial(to netip.AddrPort) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return gonet.DialContextTCP(ctx, g.stack, full(to), ipv4.ProtocolNumber)
}

func (g *guest) mustDial(to netip.AddrPort) *gonet.TCPConn {
	g.t.Helper()
	c, err := g.dial(to)
	if err != nil {
		g.t.Fatalf("dial %s: %v", to, err)
	}
	g.t.Cleanup(func() { c.Close() })
	return c
}

// dialUDP opens a UDP socket of the guest that speaks to one address.
func (g *guest) dialUDP(to netip.AddrPort) *gonet.UDPConn {
	g.t.Helper()
	addr := full(to)
	c, err := gonet.DialUDP(g.stack, nil, &addr, ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	return c
}

// host is the address by which the guest reaches a port of the host's loopback.
func (g *guest) host(l net.Addr) netip.AddrPort {
	var port uint16
	switch a := l.(type) {
	case *net.TCPAddr:
		port = uint16(a.Port)
	case *net.UDPAddr:
		port = uint16(a.Port)
	}
	return netip.AddrPortFrom(g.net.addr.host, port)
}

// serve runs f with each connection to a port of the host's loopback.
func serve(t testing.TB, f func(*net.TCPConn)) net.Addr {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				defer context.AfterFunc(ctx, func() { c.Close() })()
				defer c.Close()
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		cancel()
		conns.Wait()
	})
	return l.Addr()
}

// echo hides what c is: Go would splice by pipes and keep them.
func echo(c *net.TCPConn) {
	io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	c.CloseWrite()
}

// descriptors counts the process's open files.
func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("this system does not list open files in /proc/self/fd")
	}
	return len(entries)
}

func contains(err error, text string) bool { return err != nil && strings.Contains(err.Error(), text) }

// abort ends a connection of the guest with a reset.
func (g *guest) abort(c *gonet.TCPConn) {
	local := c.LocalAddr().(*net.TCPAddr)
	for _, e := range g.stack.RegisteredEndpoints() {
		ep, ok := e.(*tcp.Endpoint)
		if !ok {
			continue
		}
		if a, err := ep.GetLocalAddress(); err == nil && int(a.Port) == local.Port {
			ep.Abort()
		}
	}
}

var discard = slog.New(slog.DiscardHandler)
