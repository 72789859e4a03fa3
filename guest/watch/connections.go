//go:build linux

package watch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/relay"
	"golang.org/x/sys/unix"
)

const (
	headTime = 30 * time.Second // for the host to say what a stream is: an emulated guest under load is that slow
	dialTime = 20 * time.Second // for a container to answer
)

// Connections is the guest's end of the host's streams to published ports.
type Connections struct {
	ports   *Ports
	clients *Clients
	log     *slog.Logger
}

// NewConnections serves what ports publishes, by way of clients.
func NewConnections(log *slog.Logger, ports *Ports, clients *Clients) *Connections {
	return &Connections{ports: ports, clients: clients, log: log}
}

// Serve serves one greeted stream of api.PortConnect until it or ctx ends, and closes it.
func (c *Connections) Serve(ctx context.Context, conn net.Conn) {
	s, err := newHostStream(conn)
	if err != nil {
		conn.Close()
		c.log.Error("refused a stream to a published port", "err", err)
		return
	}
	if err := c.serve(ctx, s); err != nil {
		c.log.Debug("connection to a published port", "err", err)
	}
}

func (c *Connections) serve(ctx context.Context, s *hostStream) error {
	head, to, err := c.head(s)
	if err != nil {
		s.Break()
		return err
	}
	from, _ := netip.ParseAddrPort(head.From) // none: from this guest's own
	conn, err := c.clients.dial(ctx, head.Protocol, from, to)
	if err != nil {
		s.Break()
		return err
	}
	if udp, ok := conn.(*net.UDPConn); ok {
		return relay.Datagrams(ctx, s, udp)
	}
	return relay.Pipe(ctx, s, target{conn.(*net.TCPConn)})
}

// head reads what the stream is. The host is trusted, and yet held to what was published.
func (c *Connections) head(s *hostStream) (api.Connect, netip.AddrPort, error) {
	var to netip.AddrPort
	if err := s.SetReadDeadline(time.Now().Add(headTime)); err != nil {
		return api.Connect{}, to, err
	}
	head, err := api.ReadConnect(s)
	if err != nil {
		return head, to, err
	}
	if err := s.SetReadDeadline(time.Time{}); err != nil {
		return head, to, err
	}
	if to, err = netip.ParseAddrPort(head.To); err != nil {
		return head, to, fmt.Errorf("read where a stream leads to: %w", err)
	}
	if head.Protocol != "tcp" && head.Protocol != "udp" || !c.ports.leads(head.Protocol, to) {
		return head, to, fmt.Errorf("refused a stream to %s/%s, which is not published", head.To, head.Protocol)
	}
	return head, to, nil
}

// target is a TCP connection whose resets pass.
type target struct{ *net.TCPConn }

var _ relay.Breaker = target{}

// Break implements relay.Breaker: the peer gets a reset.
func (t target) Break() {
	_ = t.SetLinger(0)
	t.Close()
}

// Broken implements relay.Breaker: TCP's resets are errors, not ends.
func (t target) Broken() bool { return false }

// hostStream is a stream from the host. The kernel's vsock gives end-of-file whether the host has ended its direction or
// closed the stream; for api.Connect the one is an end and the other a reset.
type hostStream struct {
	stream
	raw   syscall.RawConn
	ended atomic.Bool // by us
}

type stream interface {
	net.Conn
	CloseWrite() error
}

var _ relay.Breaker = (*hostStream)(nil)

func newHostStream(conn net.Conn) (*hostStream, error) {
	s, ok := conn.(stream)
	if !ok {
		return nil, errors.New("it has no half-close")
	}
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return nil, errors.New("it is no socket")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &hostStream{stream: s, raw: raw}, nil
}

// SyscallConn lets relay wait without a buffer.
func (s *hostStream) SyscallConn() (syscall.RawConn, error) { return s.raw, nil }

// CloseWrite ends our direction.
func (s *hostStream) CloseWrite() error {
	s.ended.Store(true)
	return s.stream.CloseWrite()
}

// Break implements relay.Breaker: a stream that is closed before both sides have ended their directions is a reset.
func (s *hostStream) Break() { s.Close() }

// Broken implements relay.Breaker. It asks the kernel in two ways (Linux, net/vmw_vsock/af_vsock.c,
// vsock_connectible_sendmsg; neither sends anything): a send to an address is refused with EISCONN while the stream lives and
// otherwise once the host has closed it; an empty send is refused with EPIPE where the host receives no more, or where we
// have ended our own direction, in which case it says nothing.
func (s *hostStream) Broken() bool {
	var broken bool
	_ = s.raw.Control(func(fd uintptr) {
		err := unix.Sendto(int(fd), nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST})
		if !errors.Is(err, unix.EISCONN) {
			broken = true
			return
		}
		_, err = unix.SendmsgN(int(fd), nil, nil, nil, unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT)
		broken = errors.Is(err, unix.EPIPE) && !s.ended.Load()
	})
	return broken
}
