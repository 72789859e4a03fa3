package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const nicID = 1

// What one guest may have at once.
const (
	maxDials       = 1024 // TCP connections that are being made; further ones wait for the guest to ask again
	maxConnections = 4096 // TCP connections; further ones are refused
	maxQueries     = 256  // DNS queries in flight; further ones are dropped
)

// segment is one cable with its stack and everything that came by it. It lives as long as Frames runs.
type segment struct {
	net   *Network
	cable *cable
	stack *stack.Stack
	udp   flows[udpKey]
	ping  flows[pingKey]

	connections atomic.Int64
	queries     chan struct{} // holds one for each in flight

	mu     sync.Mutex
	closed bool
	tasks  sync.WaitGroup
}

func newSegment(ctx context.Context, n *Network, conn net.Conn) (*segment, error) {
	s := &segment{net: n, queries: make(chan struct{}, maxQueries)}
	s.udp.limit, s.ping.limit = maxUDP, maxPings
	s.cable = newCable(conn, n.mtu, gatewayMAC, n.addr.accept)
	s.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := s.configure(); err != nil {
		s.stack.Destroy()
		return nil, fmt.Errorf("make network stack: %w", err)
	}
	connect := tcp.NewForwarder(s.stack, smallWindow, maxDials, func(r *tcp.ForwarderRequest) {
		if !s.enter() {
			r.Complete(true)
			return
		}
		defer s.tasks.Done()
		s.connect(ctx, r)
	})
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		return s.wanted(id) && connect.HandlePacket(id, pkt)
	})
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, func(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
		return s.datagram(ctx, id, pkt)
	})
	s.stack.SetTransportProtocolHandler(icmp.ProtocolNumber4, s.echo)
	return s, nil
}

// configure gives the stack its addresses, and the right to speak as everybody.
func (s *segment) configure() error {
	if err := s.stack.CreateNIC(nicID, s.cable); err != nil {
		return errors.New(err.String())
	}
	for _, a := range []netip.Addr{s.net.addr.gateway, s.net.addr.host} {
		p := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: address(a).WithPrefix()}
		if err := s.stack.AddProtocolAddress(nicID, p, stack.AddressProperties{}); err != nil {
			return errors.New(err.String())
		}
	}
	s.stack.SetSpoofing(nicID, true)
	s.stack.SetPromiscuousMode(nicID, true)
	s.stack.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	// The cable neither loses nor turns round packets, so that an old connection's cannot appear in a new one.
	wait := tcpip.TCPTimeWaitTimeoutOption(500 * time.Millisecond)
	linger := tcpip.TCPLingerTimeoutOption(10 * time.Second)
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: smallWindow, Max: largeWindow}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: smallWindow, Max: largeWindow}
	for _, o := range []tcpip.SettableTransportProtocolOption{&wait, &linger, &send, &receive} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return errors.New(err.String())
		}
	}
	return nil
}

// run moves frames until ctx or the stream ends.
func (s *segment) run(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { s.cable.stop(ctx.Err()) })()
	s.tasks.Go(s.cable.transmit)
	err := s.cable.receive()
	s.cable.stop(io.EOF)
	// What transmit has closed, it could not write to; a guest that was killed leaves unread bytes, which is a reset.
	if ctx.Err() != nil || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) {
		return nil
	}
	return fmt.Errorf("serve network: %w", err)
}

// close ends everything that came by the cable.
func (s *segment) close(cancel context.CancelFunc) {
	s.cable.stop(io.EOF)
	cancel()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stack.Close()
	s.udp.close()
	s.ping.close()
	s.tasks.Wait()
	s.stack.Destroy()
}

// enter is called by a goroutine before it works for the segment: false says that there is nothing more to do. It calls
// tasks.Done at its end.
func (s *segment) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.tasks.Add(1)
	}
	return !s.closed
}

// accept is whether the stack gets a packet: only the guest's own, and of ARP only what concerns us.
func (a addresses) accept(proto tcpip.NetworkProtocolNumber, p []byte) bool {
	switch proto {
	case ipv4.ProtocolNumber:
		if len(p) < header.IPv4MinimumSize || p[0]>>4 != 4 {
			return false
		}
		to := netip.AddrFrom4([4]byte(p[16:20]))
		return netip.AddrFrom4([4]byte(p[12:16])) == a.guest && to.As4()[0] < 224
	case arp.ProtocolNumber:
		h := header.ARP(p)
		if len(p) < header.ARPSize || !h.IsValid() {
			return false
		}
		from, to := netip.AddrFrom4([4]byte(h.ProtocolAddressSender())), netip.AddrFrom4([4]byte(h.ProtocolAddressTarget()))
		return h.Op() == header.ARPRequest && (from == a.guest || from.IsUnspecified()) && (to == a.gateway || to == a.host)
	}
	return false
}

// address is a as the stack spells it.
func address(a netip.Addr) tcpip.Address { return tcpip.AddrFrom4(a.As4()) }

// destination is where the guest sent a packet to.
func destination(id stack.TransportEndpointID) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4(id.LocalAddress.As4()), id.LocalPort)
}
