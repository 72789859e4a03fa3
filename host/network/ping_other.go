//go:build !unix

package network

import (
	"errors"
	"net"
	"net/netip"
)

func dialPing(netip.Addr) (*net.UDPConn, error) {
	return nil, errors.New("this system has no sockets for pings")
}
