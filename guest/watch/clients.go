//go:build linux

package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Clients makes connections to containers come from their client's own address: it binds a socket to an address that is not
// this guest's (IP_TRANSPARENT, man 7 ip), and has the kernel bring the answers back to it. Where that does not work a
// connection comes from the guest, as all do where it is off.
//
// The way of the answers: a container sends them to its gateway, the guest, where they are addressed to a stranger. A rule of
// nftables finds the socket that they are for and marks them; a rule of routing sends what is marked to this guest itself.
// Answers of a listener in the guest's own network are found by the mark of their connection instead.
type Clients struct {
	log *slog.Logger
	run func(ctx context.Context, path string, args ...string) error
	dir string // for the rules' file

	mu     sync.Mutex
	on     bool
	ready  bool                     // the rules are in force
	failed error                    // why they cannot be
	opaque map[netip.Addr]time.Time // containers that only answer the guest itself, and until when that is believed
}

// NewClients makes Clients that is off. run runs a program of the root to its end and fails when the program does.
func NewClients(log *slog.Logger, run func(ctx context.Context, path string, args ...string) error) *Clients {
	return &Clients{log: log, run: run, dir: filepath.Dir(SocketPath), opaque: map[netip.Addr]time.Time{}}
}

// Set switches it on or off for connections from now on.
func (c *Clients) Set(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.on = on
}

const (
	// The marks: of what our sockets send, and of what is for them.
	markSent  = 0x0c0a0001
	markOurs  = 0x0c0a0002
	ruleTable = 0xc0a // of routing: everything is local
	rulePref  = 0xc0a // before the main table's 32766

	setupTime  = 30 * time.Second
	clientTime = 2 * time.Second  // for a container to answer a stranger
	opaqueTime = 10 * time.Minute // until a container that does not is tried again
	maxOpaque  = 1 << 10
)

// rules are the way back, for nft -f; the first two lines make it the same whatever was there.
var rules = fmt.Sprintf(`table inet coracle {}
delete table inet coracle
table inet coracle {
	chain prerouting {
		type filter hook prerouting priority mangle; policy accept;
		ct mark %[1]d ct direction reply meta mark set %[2]d accept
		meta l4proto { tcp, udp } socket mark %[1]d socket transparent 1 meta mark set %[2]d
	}
	chain output {
		type route hook output priority mangle; policy accept;
		meta mark %[1]d ct mark set %[1]d accept
		ct mark %[1]d ct direction reply meta mark set %[2]d
	}
}
`, markSent, markOurs)

// prepare puts the way back in force, once. It says whether it is.
func (c *Clients) prepare() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.on || c.ready || c.failed != nil {
		return c.on && c.ready
	}
	ctx, cancel := context.WithTimeout(context.Background(), setupTime)
	defer cancel()
	if c.failed = c.setup(ctx); c.failed != nil {
		c.log.Warn("containers see the machine's own address for clients of published ports", "err", c.failed)
	}
	c.ready = c.failed == nil
	return c.ready
}

func (c *Clients) setup(ctx context.Context) error {
	path := filepath.Join(c.dir, "clients.nft")
	if err := os.WriteFile(path, []byte(rules), 0o600); err != nil {
		return fmt.Errorf("write rules for client addresses: %w", err)
	}
	if err := c.run(ctx, "/usr/sbin/nft", "-f", path); err != nil {
		return fmt.Errorf("set rules for client addresses: %w", err)
	}
	return routeBack()
}

// dial connects to a published port's target, from the client's address where that can be.
func (c *Clients) dial(ctx context.Context, protocol string, from, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	plain := &net.Dialer{}
	if !c.can(from, to) {
		return plain.DialContext(ctx, protocol, to.String())
	}
	conn, err := c.dialAs(ctx, protocol, from, to)
	if err == nil || errors.Is(err, syscall.ECONNREFUSED) || ctx.Err() != nil {
		return conn, err
	}
	why := err
	if conn, err = plain.DialContext(ctx, protocol, to.String()); err == nil {
		c.giveUp(to.Addr(), why)
	}
	return conn, err
}

// can is whether a connection from the address from to the address to can be tried.
func (c *Clients) can(from, to netip.AddrPort) bool {
	a := from.Addr()
	if !a.IsGlobalUnicast() || a.Zone() != "" || a.Is4In6() || a.Is4() != to.Addr().Is4() || to.Addr().IsLoopback() || !c.prepare() {
		return false
	}
	// An address of the guest's own networks would be answered there, by a neighbour or nobody.
	links, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, l := range links {
		if n, ok := l.(*net.IPNet); ok && n.Contains(a.AsSlice()) {
			return false
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().After(c.opaque[to.Addr()])
}

// giveUp has connections to a target that does not answer clients come from the guest for a while.
func (c *Clients) giveUp(to netip.Addr, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.opaque) >= maxOpaque {
		clear(c.opaque)
	}
	c.opaque[to] = time.Now().Add(opaqueTime)
	c.log.Warn("a container sees the machine's own address for its clients: it does not answer theirs", "container", to, "err", why)
}

// dialAs connects from the address from, from its very port where no other connection to the same target has that: a client
// can use one port for two published ones that lead to the same target.
func (c *Clients) dialAs(ctx context.Context, protocol string, from, to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, clientTime)
	defer cancel()
	if to.Addr().IsUnspecified() { // a listener in the guest's own network, which a stranger does not reach by loopback
		own, err := ownAddress(to.Addr().Is4())
		if err != nil {
			return nil, err
		}
		to = netip.AddrPortFrom(own, to.Port())
	}
	conn, err := connectAs(ctx, protocol, from, to)
	if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EADDRNOTAVAIL) {
		return connectAs(ctx, protocol, netip.AddrPortFrom(from.Addr(), 0), to)
	}
	return conn, err
}

func connectAs(ctx context.Context, protocol string, from, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		cerr := raw.Control(func(fd uintptr) { err = foreign(int(fd), from) })
		return errors.Join(cerr, err)
	}}
	if protocol == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(from)
	} else {
		d.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	return d.DialContext(ctx, protocol, to.String())
}

// foreign lets a socket be bound to an address that is not this guest's, and to one that another such socket has.
func foreign(fd int, from netip.AddrPort) error {
	level, option := unix.SOL_IP, unix.IP_TRANSPARENT
	if from.Addr().Is6() {
		level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	if err := unix.SetsockoptInt(fd, level, option, 1); err != nil {
		return fmt.Errorf("set transparent: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, markSent); err != nil {
		return fmt.Errorf("set mark: %w", err)
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
}

// ownAddress is an address of this guest's that is not a loopback's: strangers' answers leave from there.
func ownAddress(v4 bool) (netip.Addr, error) {
	links, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, l := range links {
		n, ok := l.(*net.IPNet)
		if !ok {
			continue
		}
		if a, ok := netip.AddrFromSlice(n.IP); ok && a.Unmap().Is4() == v4 && a.Unmap().IsGlobalUnicast() {
			return a.Unmap(), nil
		}
	}
	return netip.Addr{}, errors.New("this guest has no address of its own")
}
