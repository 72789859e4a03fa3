package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
)

// port is one open socket.
type port struct {
	key  key
	stop func() // closes the socket

	mu    sync.Mutex
	route *route
}

// route is where an open socket leads: its connections live as long as it does.
type route struct {
	forward guestapi.Forward
	ctx     context.Context // of the connections
	end     context.CancelFunc
}

// lead has new connections go where f says. Those of another forward end.
func (p *port) lead(f guestapi.Forward) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.route != nil {
		if p.route.forward == f {
			return
		}
		p.route.end()
	}
	ctx, end := context.WithCancel(context.Background())
	p.route = &route{forward: f, ctx: ctx, end: end}
}

func (p *port) current() *route {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.route
}

// close frees the port at once; its connections end soon after.
func (p *port) close() {
	p.stop()
	p.current().end()
}

// open opens k and serves it.
func (f *Forwarder) open(ctx context.Context, k key, owner guestapi.Forward) (*port, error) {
	if f.closed {
		return nil, net.ErrClosed
	}
	p := &port{key: k}
	p.lead(owner)
	family := "6"
	if k.at.Addr().Is4() {
		family = "4"
	}
	var lc net.ListenConfig
	var serve func()
	if k.protocol == "tcp" {
		l, err := lc.Listen(ctx, "tcp"+family, k.at.String())
		if err != nil {
			return nil, err
		}
		p.stop = func() { l.Close() }
		serve = func() { f.accept(p, l) }
	} else {
		c, err := lc.ListenPacket(ctx, "udp"+family, k.at.String())
		if err != nil {
			return nil, err
		}
		p.stop = func() { c.Close() }
		serve = func() { f.receive(p, c.(*net.UDPConn)) }
	}
	f.wait.Go(serve)
	return p, nil
}

// ownerTime bounds the search for who has a port.
const ownerTime = time.Second

// explain says what a user can do about err, in the words of Docker on Linux where it has any.
func (f *Forwarder) explain(ctx context.Context, k key, err error) error {
	what := fmt.Sprintf("failed to bind host port %v", k)
	switch {
	case isInUse(err):
		ctx, cancel := context.WithTimeout(ctx, ownerTime)
		defer cancel()
		return fmt.Errorf("%s: address already in use%s", what, f.taken(ctx, k))
	case isDenied(err):
		return fmt.Errorf("%s: permission denied%s", what, remedy(runtime.GOOS, k.at))
	case isNoAddress(err):
		return fmt.Errorf("%s: this host has no address %s", what, k.at.Addr())
	}
	var op *net.OpError
	if errors.As(err, &op) { // the rest of it says the address once more
		err = op.Err
	}
	return fmt.Errorf("%s: %w", what, err)
}

// taken says who has the port, where that can be told.
func (f *Forwarder) taken(ctx context.Context, k key) string {
	for have := range f.ports {
		if have.protocol == k.protocol && overlap(have.at, k.at) {
			return fmt.Sprintf(" by this machine's own port %v", have)
		}
	}
	if who := owner(ctx, k); who != "" {
		return " by " + who
	}
	return ""
}

// overlap is whether two sockets exclude each other.
func overlap(a, b netip.AddrPort) bool {
	return a.Port() == b.Port() && (a.Addr() == b.Addr() ||
		a.Addr().Is4() == b.Addr().Is4() && (a.Addr().IsUnspecified() || b.Addr().IsUnspecified()))
}

// remedy is what to do where the system goos keeps a port for itself.
func remedy(goos string, at netip.AddrPort) string {
	if at.Port() >= 1024 {
		return ""
	}
	switch goos {
	case "linux":
		return fmt.Sprintf(": choose a port from 1024 on, or allow this one: sudo sysctl net.ipv4.ip_unprivileged_port_start=%d", at.Port())
	case "darwin":
		if !at.Addr().IsUnspecified() {
			return ": choose a port from 1024 on, or publish at 0.0.0.0, where macOS allows it"
		}
	}
	return ": choose a port from 1024 on"
}
