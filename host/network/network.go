// Package network is the outside as the guest sees it: one ethernet cable (vm.Network.Frames) that ends in a TCP/IP stack in
// this process, whose connections go on through the host's own sockets and resolver. So they follow whatever the host's
// network does: its routes, VPNs, firewalls and split DNS, as they are at the moment of each connection; there is nothing to
// restart when they change. It also finds the proxies and CA certificates that the host uses. Its neighbours on the data
// path are the hypervisor's driver, which plugs the cable in, and the host's sockets; host/machine gives the guest what
// Guest returns. Published ports do not pass here, but through vsock.
//
// The virtual network is a /24 with three addresses in use: the gateway (.1), the guest (.3) and the host (.254). In it
// nothing answers but DNS, at the gateway, and ping. What of the world the guest reaches:
//
//   - host.docker.internal (.254) is the host's own 127.0.0.1 (or ::1, where only that listens), while Loopback is on;
//     refused while it is off. It is the one way to the host's loopback: 127.0.0.0/8 and 0.0.0.0/8 are no destinations.
//   - Addresses of the host's own network cards are reached as from another machine of their network while Loopback is on,
//     though the host's firewall may not see it so; refused while it is off.
//   - 169.254.0.0/16 is refused: on a cloud's machine the address that hands out the machine's credentials lies there.
//   - Multicast, broadcast and reserved addresses are no destinations. There is no IPv6.
//   - Everything else is the host's to reach or not.
//
// The guest is hostile: frames are parsed within fixed bounds, packets from any address but the guest's are dropped, and
// connections, datagram flows, dials in flight, queries and what all of them buffer are bounded.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/coracle-engine/coracle/guest/api"
)

// DefaultMTU is as large as pays and as frames may be: with IPv4's header and ethernet's it fits in one 64 KiB buffer, here
// and in QEMU.
const DefaultMTU = 65520

// DefaultSubnet is the virtual network's, where Config names no other.
var DefaultSubnet = netip.MustParsePrefix("192.168.65.0/24")

// Config says how a Network is made.
type Config struct {
	Log      *slog.Logger
	Loopback bool         // the host's loopback is at host.docker.internal
	MTU      int          // bytes, 576 to 65520; 0: DefaultMTU
	Subnet   netip.Prefix // a /24 of IPv4; zero: DefaultSubnet
}

// Network is one virtual network, for one machine over all its starts. Its methods may be called from several goroutines.
type Network struct {
	log      *slog.Logger
	loopback atomic.Bool
	mtu      int
	addr     addresses
	names    *resolver

	mu     sync.Mutex
	closed bool
	cancel map[*segment]context.CancelFunc // of what runs
	tasks  sync.WaitGroup                  // each Frames
}

// addresses are the three that are in use, and their network.
type addresses struct {
	subnet               netip.Prefix
	gateway, guest, host netip.Addr
}

func newAddresses(subnet netip.Prefix) addresses {
	at := func(last byte) netip.Addr {
		b := subnet.Addr().As4()
		b[3] = last
		return netip.AddrFrom4(b)
	}
	return addresses{subnet: subnet, gateway: at(1), guest: at(3), host: at(254)}
}

// New makes a network that no cable leads to yet.
func New(cfg Config) (*Network, error) {
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.MTU < 576 || cfg.MTU > DefaultMTU {
		return nil, fmt.Errorf("network mtu is %d: want 576 to %d", cfg.MTU, DefaultMTU)
	}
	if !cfg.Subnet.IsValid() {
		cfg.Subnet = DefaultSubnet
	}
	if !cfg.Subnet.Addr().Is4() || cfg.Subnet.Bits() != 24 || cfg.Subnet.Masked() != cfg.Subnet {
		return nil, fmt.Errorf("network %s: want a /24 of IPv4, such as %s", cfg.Subnet, DefaultSubnet)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	n := &Network{log: cfg.Log, mtu: cfg.MTU, addr: newAddresses(cfg.Subnet), cancel: map[*segment]context.CancelFunc{}}
	n.loopback.Store(cfg.Loopback)
	n.names = newResolver(n.addr, n.log)
	return n, nil
}

// Guest is what the guest is told about its end.
func (n *Network) Guest() api.Network {
	return api.Network{
		Address: netip.PrefixFrom(n.addr.guest, n.addr.subnet.Bits()).String(),
		Gateway: n.addr.gateway.String(), DNS: []string{n.addr.gateway.String()}, MTU: n.mtu, Host: n.addr.host.String(),
	}
}

// HostAddress is what host.docker.internal is in the virtual network: dockerd's host-gateway.
func (n *Network) HostAddress() netip.Addr { return n.addr.host }

// SetLoopback says from now on whether the guest reaches the host's own addresses. Connections that are open stay.
func (n *Network) SetLoopback(on bool) { n.loopback.Store(on) }

// Frames is the far end of a guest's cable, as vm.Network.Frames says: it returns nil when ctx or the stream ends, and by then
// has ended every connection that came by the cable. It closes the cable.
func (n *Network) Frames(ctx context.Context, cable net.Conn) error {
	defer cable.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := newSegment(ctx, n, cable)
	if err != nil {
		return err
	}
	defer s.close(cancel)
	n.mu.Lock()
	if n.closed {
		n.mu.Unlock()
		return errors.New("serve network: it is closed")
	}
	n.tasks.Add(1)
	n.cancel[s] = cancel
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		delete(n.cancel, s)
		n.mu.Unlock()
		n.tasks.Done()
	}()
	return s.run(ctx)
}

// Close ends every Frames and waits for them. It may be called twice.
func (n *Network) Close() error {
	n.mu.Lock()
	n.closed = true
	for _, cancel := range n.cancel {
		cancel()
	}
	n.mu.Unlock()
	n.tasks.Wait()
	return nil
}
