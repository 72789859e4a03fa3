package network

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// dialTimeout is how long the host may take to make a connection. The guest gives up by itself, mostly earlier.
	dialTimeout = 2 * time.Minute
	// A connection buffers up to smallWindow bytes each way, and the first largeCount of them up to largeWindow.
	smallWindow = 128 << 10
	largeWindow = 4 << 20
	largeCount  = 64
)

// wanted is whether a connection of the guest is to be made at all. The stack resets it otherwise.
func (s *segment) wanted(id stack.TransportEndpointID) bool {
	to := destination(id)
	return s.connections.Load() < maxConnections && (s.isDNS(to) || len(s.net.target(to)) > 0)
}

func (s *segment) isDNS(to netip.AddrPort) bool {
	return to == netip.AddrPortFrom(s.net.addr.gateway, 53)
}

// connect makes the connection that the guest asks for on the host, then accepts the guest's, so that the guest sees a
// refusal as one.
func (s *segment) connect(ctx context.Context, r *tcp.ForwarderRequest) {
	to := destination(r.ID())
	if s.connections.Add(1) > maxConnections {
		s.connections.Add(-1)
		r.Complete(true)
		return
	}
	defer s.connections.Add(-1)
	if s.isDNS(to) {
		if g := s.admit(ctx, r, true); g != nil {
			s.queryStream(ctx, g)
		}
		return
	}
	host, err := s.dial(ctx, to)
	if err != nil {
		s.net.log.Debug("dial for the guest", "to", to, "error", err)
		r.Complete(true)
		return
	}
	g := s.admit(ctx, r, s.connections.Load() > largeCount)
	if g == nil {
		reset(host)
		return
	}
	splice(ctx, g, host)
}

// dial connects to where the guest's address to leads.
func (s *segment) dial(ctx context.Context, to netip.AddrPort) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if s.net.refused(to) {
		return nil, errors.New("the host's own addresses are not to be reached")
	}
	err := errors.New("not an address to reach")
	for _, target := range s.net.target(to) {
		var c net.Conn
		if c, err = new(net.Dialer).DialContext(ctx, "tcp", target.String()); err == nil {
			return c.(*net.TCPConn), nil
		}
	}
	return nil, err
}

// admit ends the handshake with the guest; it returns nil where the guest has left meanwhile. A small connection is one that
// never buffers more than smallWindow each way.
func (s *segment) admit(ctx context.Context, r *tcp.ForwarderRequest, small bool) *guestConn {
	g := &guestConn{cable: s.cable, small: small}
	made := make(chan struct{})
	defer context.AfterFunc(ctx, func() { g.giveUp(made) })()
	ep, err := r.CreateEndpoint(&g.queue)
	close(made)
	r.Complete(false)
	if err != nil {
		return nil
	}
	if small {
		ep.SocketOptions().SetSendBufferSize(smallWindow, true)
	}
	g.ep = ep
	return g
}

// giveUp wakes a handshake that waits for a guest, which may never answer, until it is made or not. It waits only for news and
// begins to at an unknown moment, so once is not enough.
func (g *guestConn) giveUp(made <-chan struct{}) {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		g.queue.Notify(waiter.WritableEvents)
		select {
		case <-made:
			return
		case <-again.C:
		}
	}
}

// guestConn is the guest's end of a connection.
type guestConn struct {
	queue waiter.Queue
	ep    tcpip.Endpoint
	cable *cable
	small bool
}

// read waits until there is something and returns it in a buffer that the caller gives back; io.EOF is the guest's end.
func (g *guestConn) read() (*[]byte, int, error) {
	var ready chan struct{}
	for {
		buf := buffers.Get().(*[]byte)
		w := tcpip.SliceWriter(*buf)
		res, err := g.ep.Read(&w, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			if !g.small {
				g.ep.(*tcp.Endpoint).ModerateRecvBuf(res.Count)
			}
			return buf, res.Count, nil
		case *tcpip.ErrWouldBlock:
			buffers.Put(buf)
		case *tcpip.ErrClosedForReceive:
			buffers.Put(buf)
			return nil, 0, io.EOF
		default:
			buffers.Put(buf)
			return nil, 0, errors.New(err.String())
		}
		if ready == nil {
			var entry waiter.Entry
			entry, ready = waiter.NewChannelEntry(waiter.ReadableEvents | waiter.EventHUp | waiter.EventErr)
			g.queue.EventRegister(&entry)
			defer g.queue.EventUnregister(&entry)
			continue // what came before the registration was not told
		}
		<-ready
	}
}

// Write implements io.Writer.
func (g *guestConn) Write(p []byte) (int, error) {
	var ready chan struct{}
	r := bytes.NewReader(p)
	for r.Len() > 0 {
		g.cable.pace()
		_, err := g.ep.Write(r, tcpip.WriteOptions{})
		switch err.(type) {
		case nil:
			continue
		case *tcpip.ErrWouldBlock:
		default:
			return len(p) - r.Len(), errors.New(err.String())
		}
		if ready == nil {
			var entry waiter.Entry
			entry, ready = waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
			g.queue.EventRegister(&entry)
			defer g.queue.EventUnregister(&entry)
			continue
		}
		<-ready
	}
	return len(p), nil
}

// splice carries bytes, ends and resets both ways until both ways have ended or ctx has.
func splice(ctx context.Context, guest *guestConn, host *net.TCPConn) {
	fail := func() {
		guest.ep.Abort()
		reset(host)
	}
	stop := context.AfterFunc(ctx, fail)
	var up sync.WaitGroup
	up.Go(func() {
		if err := pump(host, guest.read); err != nil || host.CloseWrite() != nil {
			fail()
		}
	})
	from, err := newSource(host)
	if err == nil {
		err = pump(guest, from.read)
	}
	if err != nil || guest.ep.Shutdown(tcpip.ShutdownWrite) != nil {
		fail()
	}
	up.Wait()
	stop()
	host.Close()
	guest.ep.Close()
}

// reset closes c so that its other end sees a reset.
func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// buffers hold what is on its way. A connection has one while it has bytes to carry, not while it waits for them.
var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// bufferSize holds any datagram, and what one packet of TCP carries.
const bufferSize = 64 << 10

// pump writes to w what read returns until its io.EOF, which is no error.
func pump(w io.Writer, read func() (*[]byte, int, error)) error {
	for {
		buf, n, err := read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		_, err = w.Write((*buf)[:n])
		buffers.Put(buf)
		if err != nil {
			return err
		}
	}
}
