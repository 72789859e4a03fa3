package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// Datagram flows end when nothing was sent for a while: sooner where nothing ever came back, as in Linux's connection tracking.
const (
	maxUDP        = 2048
	udpUnanswered = 30 * time.Second
	udpAnswered   = 180 * time.Second
)

// udpKey is a flow of datagrams: from a port of the guest to an address.
type udpKey struct {
	from uint16
	to   netip.AddrPort
}

// flow is a socket of the host's that stands for one flow of the guest.
type flow struct {
	conn *net.UDPConn
	last atomic.Int64 // when it was last used, Unix nanoseconds
}

func (f *flow) touch() { f.last.Store(time.Now().UnixNano()) }

// flows are bounded: where there are limit, one that was not used for long makes room for a new one.
type flows[K comparable] struct {
	limit int

	mu     sync.Mutex
	closed bool
	open   map[K]*flow
}

func (f *flows[K]) get(k K) *flow {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open[k]
}

// put adds a flow. It returns false, and does nothing, where all have ended.
func (f *flows[K]) put(k K, fl *flow) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return false
	}
	if f.open == nil {
		f.open = map[K]*flow{}
	}
	if len(f.open) >= f.limit {
		f.evict()
	}
	f.open[k] = fl
	return true
}

// evict ends the least recently used of a handful of flows: to look at all of them for each new one would cost too much.
func (f *flows[K]) evict() {
	var key K
	var oldest *flow
	seen := 0
	for k, fl := range f.open {
		if oldest == nil || fl.last.Load() < oldest.last.Load() {
			key, oldest = k, fl
		}
		if seen++; seen == 16 {
			break
		}
	}
	delete(f.open, key)
	oldest.conn.Close()
}

func (f *flows[K]) remove(k K, fl *flow) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open[k] == fl {
		delete(f.open, k)
	}
	fl.conn.Close()
}

func (f *flows[K]) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, fl := range f.open {
		fl.conn.Close()
	}
}

// datagram takes one datagram of the guest. Where it returns false the guest is told that nobody listens there.
func (s *segment) datagram(ctx context.Context, id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.UDP(pkt.TransportHeader().Slice())
	if int(h.Length()) != header.UDPMinimumSize+pkt.Data().Size() {
		return true // nonsense is not answered
	}
	to := destination(id)
	if s.isDNS(to) {
		s.query(ctx, id.RemotePort, pkt.Data().AsRange().ToSlice())
		return true
	}
	key := udpKey{id.RemotePort, to}
	f := s.udp.get(key)
	if f == nil {
		if f = s.newFlow(key); f == nil {
			return false
		}
	}
	f.touch()
	payload := pkt.Data().AsRange().ToSlice()
	if _, err := f.conn.Write(payload); errors.Is(err, syscall.ECONNREFUSED) { // of an earlier datagram
		s.unreachable(key)
		f.conn.Write(payload)
	} // a datagram that cannot be sent is one that was lost
	return true
}

// newFlow opens a flow; it returns nil where the guest must not reach its address.
func (s *segment) newFlow(key udpKey) *flow {
	targets := s.net.target(key.to)
	if len(targets) == 0 {
		return nil
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(targets[0]))
	if err != nil {
		s.net.log.Debug("open datagram flow for the guest", "to", key.to, "error", err)
		return nil
	}
	if !s.net.loopback.Load() && own(conn, targets[0]) {
		conn.Close()
		return nil
	}
	f := &flow{conn: conn}
	return openFlow(s, &s.udp, key, f, func() { s.replies(key, f) })
}

// openFlow makes f one of the flows, and runs what carries its answers. It returns nil where all flows have ended.
func openFlow[K comparable](s *segment, all *flows[K], key K, f *flow, carry func()) *flow {
	f.touch()
	if !s.enter() {
		f.conn.Close()
		return nil
	}
	if !all.put(key, f) {
		f.conn.Close()
		s.tasks.Done()
		return nil
	}
	go func() {
		defer s.tasks.Done()
		defer all.remove(key, f)
		carry()
	}()
	return f
}

// replies carries what comes back until the flow was idle for too long.
func (s *segment) replies(key udpKey, f *flow) {
	answered := false
	idle := func() time.Duration {
		if answered {
			return udpAnswered
		}
		return udpUnanswered
	}
	f.receive(idle, func(b []byte, err error) {
		if err != nil {
			s.unreachable(key)
			return
		}
		answered = true
		s.sendUDP(key.to, key.from, b)
	})
}

// receive calls take with each datagram that comes, or with ECONNREFUSED, until the flow was not used for idle, or is closed.
func (f *flow) receive(idle func() time.Duration, take func([]byte, error)) {
	from, err := newSource(f.conn)
	if err != nil {
		return
	}
	from.datagram = true
	for {
		end := time.Unix(0, f.last.Load()).Add(idle())
		if time.Until(end) <= 0 {
			return
		}
		f.conn.SetReadDeadline(end)
		buf, n, err := from.read()
		switch {
		case err == nil:
			f.touch()
			take((*buf)[:n], nil)
			buffers.Put(buf)
		case errors.Is(err, syscall.ECONNREFUSED):
			take(nil, err)
		case !isTimeout(err):
			return
		}
	}
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// sendUDP sends the guest a datagram that seems to come from an address.
func (s *segment) sendUDP(from netip.AddrPort, port uint16, payload []byte) {
	s.send(from.Addr(), header.UDPProtocolNumber, header.UDPMinimumSize, payload, func(r *stack.Route, h []byte) {
		u := header.UDP(h)
		size := uint16(len(h) + len(payload))
		u.Encode(&header.UDPFields{SrcPort: from.Port(), DstPort: port, Length: size})
		sum := u.CalculateChecksum(checksum.Checksum(payload, r.PseudoHeaderChecksum(header.UDPProtocolNumber, size)))
		if sum != 0xffff { // zero would mean that there is none
			sum = ^sum
		}
		u.SetChecksum(sum)
	})
}

// unreachable tells the guest that nobody listens where it sent a datagram (RFC 792).
func (s *segment) unreachable(key udpKey) {
	b := make([]byte, header.IPv4MinimumSize+header.UDPMinimumSize)
	header.IPv4(b).Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(header.UDPProtocolNumber),
		SrcAddr: address(s.net.addr.guest), DstAddr: address(key.to.Addr()),
	})
	header.IPv4(b).SetChecksum(^header.IPv4(b).CalculateChecksum())
	header.UDP(b[header.IPv4MinimumSize:]).Encode(&header.UDPFields{SrcPort: key.from, DstPort: key.to.Port(), Length: header.UDPMinimumSize})
	s.send(key.to.Addr(), header.ICMPv4ProtocolNumber, header.ICMPv4MinimumSize, b, func(_ *stack.Route, h []byte) {
		i := header.ICMPv4(h)
		i.SetType(header.ICMPv4DstUnreachable)
		i.SetCode(header.ICMPv4PortUnreachable)
		i.SetChecksum(header.ICMPv4Checksum(i, checksum.Checksum(b, 0)))
	})
}

// send sends the guest one packet from an address; encode fills in the transport's header of size bytes.
func (s *segment) send(from netip.Addr, proto tcpip.TransportProtocolNumber, size int, payload []byte, encode func(*stack.Route, []byte)) {
	route, err := s.stack.FindRoute(nicID, address(from), address(s.net.addr.guest), ipv4.ProtocolNumber, false)
	if err != nil {
		return // the stack is closing
	}
	defer route.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()) + size, Payload: buffer.MakeWithData(payload),
	})
	defer pkt.DecRef()
	encode(route, pkt.TransportHeader().Push(size))
	pkt.TransportProtocolNumber = proto
	route.WritePacket(stack.NetworkHeaderParams{Protocol: proto, TTL: 64}, pkt)
}
