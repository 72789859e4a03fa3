//go:build !windows

package network

import "net/netip"

// hostServers finds the host's name servers as they are at the moment. macOS keeps the file for those of the primary network.
func hostServers() func() []netip.AddrPort {
	return (&resolvConf{path: "/etc/resolv.conf"}).servers
}
