package network

import (
	"net"
	"net/netip"
)

// linkLocal holds, among others, the address where clouds hand out a machine's credentials.
var linkLocal = netip.MustParsePrefix("169.254.0.0/16")

// target says where on the host's side a packet of the guest for to goes: the addresses to try, in order. There are none for
// what the guest must not reach.
func (n *Network) target(to netip.AddrPort) []netip.AddrPort {
	addr, port := to.Addr(), to.Port()
	switch {
	case port == 0:
		return nil
	case addr == n.addr.host && n.loopback.Load():
		return []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port), netip.AddrPortFrom(netip.IPv6Loopback(), port)}
	case n.addr.subnet.Contains(addr), !outside(addr):
		return nil
	}
	return []netip.AddrPort{to}
}

// outside is whether addr can be that of another machine. 0.0.0.0/8 means the own machine to some systems, and 240.0.0.0/4 is
// nobody's.
func outside(addr netip.Addr) bool {
	first := addr.As4()[0]
	return first != 0 && first != 127 && first < 224 && !linkLocal.Contains(addr)
}

// refused is whether to is one of the host's own addresses and may not be reached now. It lets the system choose the source
// for a datagram to it, without sending one: a machine speaks to itself from the very address that it speaks to. So it knows
// what the system's routes say at this moment, which a list of addresses would not.
func (n *Network) refused(to netip.AddrPort) bool {
	if n.loopback.Load() {
		return false
	}
	probe, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return false // there is no way to it, as the connection will find too
	}
	defer probe.Close()
	return own(probe, to)
}

// own is whether the connected socket c leads back to this machine.
func own(c *net.UDPConn, to netip.AddrPort) bool {
	local := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	return local == to.Addr()
}
