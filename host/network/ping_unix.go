//go:build unix

package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// dialPing opens a socket for ICMP echoes with one address. Linux gives it to the groups in net.ipv4.ping_group_range (man 7
// icmp), macOS to everybody.
func dialPing(to netip.Addr) (*net.UDPConn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	if err != nil {
		return nil, fmt.Errorf("open socket for pings: %w", err)
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer f.Close()
	unix.CloseOnExec(fd)
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
		return nil, fmt.Errorf("connect socket for pings: %w", err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}
