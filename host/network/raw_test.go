package network

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// rawGuest is a guest that keeps to no protocol: it sends the frames it likes.
type rawGuest struct {
	t    testing.TB
	net  *Network
	conn net.Conn
	got  chan []byte // the packets that came, without ethernet's header
}

func newRawGuest(t testing.TB, cfg Config) *rawGuest {
	t.Helper()
	n, far := plug(t, cfg)
	g := &rawGuest{t: t, net: n, conn: far, got: make(chan []byte, 1<<10)}
	var reading sync.WaitGroup
	reading.Go(func() {
		defer close(g.got)
		r := bufio.NewReader(far)
		for {
			var head [4]byte
			if _, err := io.ReadFull(r, head[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint32(head[:]))
			if _, err := io.ReadFull(r, b); err != nil {
				return
			}
			g.got <- b[header.EthernetMinimumSize:]
		}
	})
	t.Cleanup(func() {
		far.Close()
		for range g.got {
		}
		reading.Wait()
	})
	return g
}

// frame puts length and ethernet header before a packet.
func frame(kind tcpip.NetworkProtocolNumber, packet []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(header.EthernetMinimumSize+len(packet)))
	b = append(b, gatewayMAC...)
	b = append(b, guestMAC...)
	return append(binary.BigEndian.AppendUint16(b, uint16(kind)), packet...)
}

// segmentOf is a TCP segment without data.
func segmentOf(from, to netip.AddrPort, flags header.TCPFlags, seq, ack uint32) []byte {
	b := make([]byte, header.IPv4MinimumSize+header.TCPMinimumSize)
	ip, tcp := header.IPv4(b), header.TCP(b[header.IPv4MinimumSize:])
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber), SrcAddr: address(from.Addr()), DstAddr: address(to.Addr()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	tcp.Encode(&header.TCPFields{
		SrcPort: from.Port(), DstPort: to.Port(), SeqNum: seq, AckNum: ack, DataOffset: header.TCPMinimumSize, Flags: flags, WindowSize: 1 << 15,
	})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), header.TCPMinimumSize)
	tcp.SetChecksum(^checksum.Checksum(tcp, sum))
	return b
}

// send sends a TCP segment.
func (g *rawGuest) send(from, to netip.AddrPort, flags header.TCPFlags, seq, ack uint32) {
	g.write(frame(header.IPv4ProtocolNumber, segmentOf(from, to, flags, seq, ack)))
}

func (g *rawGuest) write(b []byte) {
	if _, err := g.conn.Write(b); err != nil {
		g.t.Errorf("write to the cable: %v", err)
	}
}

// own is a port of the guest's own address.
func (g *rawGuest) own(port uint16) netip.AddrPort { return netip.AddrPortFrom(g.net.addr.guest, port) }

// next returns the next TCP segment that comes, with where it is from; ok is false when none came for a while.
func (g *rawGuest) next(wait time.Duration) (from netip.AddrPort, tcp header.TCP, ok bool) {
	g.t.Helper()
	limit := time.After(wait)
	for {
		select {
		case b, open := <-g.got:
			if !open {
				return from, nil, false
			}
			ip := header.IPv4(b)
			if len(b) < header.IPv4MinimumSize+header.TCPMinimumSize || ip.Protocol() != uint8(header.TCPProtocolNumber) {
				continue
			}
			tcp = header.TCP(b[header.IPv4MinimumSize:])
			return netip.AddrPortFrom(netip.AddrFrom4(ip.SourceAddress().As4()), tcp.SourcePort()), tcp, true
		case <-limit:
			return from, nil, false
		}
	}
}

// scan asks every port of an address for a connection and returns those that agreed to one.
func (g *rawGuest) scan(addr netip.Addr) map[uint16]bool { return g.scanPorts(addr, 1, 65535) }

func (g *rawGuest) scanPorts(addr netip.Addr, first, last int) map[uint16]bool {
	g.t.Helper()
	open := map[uint16]bool{}
	const flight = 256
	waiting := 0
	settle := func() bool {
		from, tcp, ok := g.next(10 * time.Second)
		if !ok {
			g.t.Errorf("%d ports of %s did not answer", waiting, addr)
			return false
		}
		switch flags := tcp.Flags(); {
		case flags.Contains(header.TCPFlagRst):
			waiting--
		case flags.Contains(header.TCPFlagSyn | header.TCPFlagAck):
			if !open[from.Port()] {
				waiting--
			}
			open[from.Port()] = true
			g.send(g.own(40000), from, header.TCPFlagRst, tcp.AckNumber(), 0)
		}
		return true
	}
	for port := first; port <= last; port++ {
		g.send(g.own(40000), netip.AddrPortFrom(addr, uint16(port)), header.TCPFlagSyn, 1, 0)
		for waiting++; waiting >= flight; {
			if !settle() {
				return open
			}
		}
	}
	for waiting > 0 && settle() {
	}
	return open
}
