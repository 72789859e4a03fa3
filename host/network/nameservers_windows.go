package network

import (
	"net/netip"
	"slices"
	"unsafe"

	"golang.org/x/sys/windows"
)

// hostServers finds the host's name servers as they are at the moment: those of the network cards that are up, in the order of
// their metrics.
func hostServers() func() []netip.AddrPort { return adapterServers }

var siteLocal = netip.MustParsePrefix("fec0::/10")

func adapterServers() []netip.AddrPort {
	size := uint32(32 << 10)
	var buf []byte
	for range 3 { // cards may come between the question for the size and the next
		buf = make([]byte, size)
		err := windows.GetAdaptersAddresses(windows.AF_UNSPEC, windows.GAA_FLAG_SKIP_UNICAST|windows.GAA_FLAG_SKIP_ANYCAST|
			windows.GAA_FLAG_SKIP_MULTICAST, 0, (*windows.IpAdapterAddresses)(unsafe.Pointer(&buf[0])), &size)
		if err == nil {
			return serversOf((*windows.IpAdapterAddresses)(unsafe.Pointer(&buf[0])))
		}
		if err != windows.ERROR_BUFFER_OVERFLOW {
			return nil
		}
	}
	return nil
}

func serversOf(first *windows.IpAdapterAddresses) []netip.AddrPort {
	type server struct {
		metric uint32
		at     netip.AddrPort
	}
	var found []server
	for a := first; a != nil; a = a.Next {
		if a.OperStatus != windows.IfOperStatusUp {
			continue
		}
		for d := a.FirstDnsServerAddress; d != nil; d = d.Next {
			// Cards without a server of their own name the site-local fec0:0:0:ffff::1 to 3, which nobody answers at.
			if ip, ok := netip.AddrFromSlice(d.Address.IP()); ok && !siteLocal.Contains(ip) {
				found = append(found, server{a.Ipv4Metric, netip.AddrPortFrom(ip.Unmap(), 53)})
			}
		}
	}
	slices.SortStableFunc(found, func(a, b server) int { return int(a.metric) - int(b.metric) })
	var list []netip.AddrPort
	for _, s := range found[:min(len(found), maxServers)] {
		list = append(list, s.at)
	}
	return list
}
