package network

import (
	"encoding/binary"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	maxPings = 64
	pingIdle = 20 * time.Second
)

// pingKey is a series of pings: its number, and where it goes.
type pingKey struct {
	id uint16
	to netip.Addr
}

// echo takes a ping of the guest. The stack itself answers for our own addresses, where echo returns false. Others are asked
// by a socket for pings, which systems give to everybody or to nobody; where to nobody, pings are lost.
func (s *segment) echo(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.ICMPv4(pkt.TransportHeader().Slice())
	to := netip.AddrFrom4(id.LocalAddress.As4())
	if len(h) < header.ICMPv4MinimumSize || h.Type() != header.ICMPv4Echo || to == s.net.addr.gateway || to == s.net.addr.host {
		return false
	}
	key := pingKey{h.Ident(), to}
	f := s.ping.get(key)
	if f == nil {
		if f = s.newPing(key); f == nil {
			return true
		}
	}
	f.touch()
	f.conn.Write(append(append([]byte{}, h...), pkt.Data().AsRange().ToSlice()...))
	return true
}

func (s *segment) newPing(key pingKey) *flow {
	targets := s.net.target(netip.AddrPortFrom(key.to, 1))
	if len(targets) == 0 || s.net.refused(targets[0]) {
		return nil
	}
	conn, err := dialPing(key.to)
	if err != nil {
		s.net.log.Debug("ping for the guest", "error", err)
		return nil
	}
	f := &flow{conn: conn}
	return openFlow(s, &s.ping, key, f, func() { s.pongs(key, f) })
}

// pongs carries the answers until nobody pinged for a while.
func (s *segment) pongs(key pingKey, f *flow) {
	f.receive(func() time.Duration { return pingIdle }, func(b []byte, err error) {
		if err != nil {
			return
		}
		if len(b) >= header.IPv4MinimumSize && b[0]>>4 == 4 { // some systems leave the IP header
			b = b[min(len(b), int(b[0]&15)*4):]
		}
		if len(b) < header.ICMPv4MinimumSize || header.ICMPv4Type(b[0]) != header.ICMPv4EchoReply {
			return
		}
		s.send(key.to, header.ICMPv4ProtocolNumber, header.ICMPv4MinimumSize, b[header.ICMPv4MinimumSize:], func(_ *stack.Route, h []byte) {
			copy(h, b)
			binary.BigEndian.PutUint16(h[4:], key.id) // the system has numbers of its own
			i := header.ICMPv4(h)
			i.SetChecksum(header.ICMPv4Checksum(i, checksum.Checksum(b[header.ICMPv4MinimumSize:], 0)))
		})
	})
}
