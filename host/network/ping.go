package network

import (
	"context"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const maxPings = 64

// pingKey is a series of pings: its number, and where it goes.
type pingKey struct {
	id uint16
	to netip.Addr
}

var _ = net.IPv4len

func (s *segment) echo(ctx context.Context, id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	return false
}
