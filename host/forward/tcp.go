package forward

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
)

// stream is a connection to the guest.
type stream interface {
	net.Conn
	CloseWrite() error
}

// dialTime bounds how long a client waits for its stream into the guest.
const dialTime = 15 * time.Second

// dial opens a stream that belongs to r's forward, for the client at from.
func (f *Forwarder) dial(ctx context.Context, r *route, from netip.AddrPort) (stream, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := f.cfg.Dial(ctx, guestapi.PortConnect)
	if err != nil {
		return nil, err
	}
	s, ok := conn.(stream)
	if !ok {
		conn.Close()
		return nil, errors.New("stream to the guest has no half-close")
	}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	err = guestapi.WriteConnect(s, guestapi.Connect{Protocol: r.forward.Protocol, To: r.forward.To, From: usable(from)})
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// usable is a client's address where it means something in the guest: loopback and link-local addresses have no meaning
// beyond the host.
func usable(from netip.AddrPort) string {
	a := from.Addr().Unmap()
	if !a.IsGlobalUnicast() || a.Zone() != "" {
		return ""
	}
	return netip.AddrPortFrom(a, from.Port()).String()
}

// The pauses after the system could not give us a connection.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
)

// accept serves a TCP port until it is closed.
func (f *Forwarder) accept(p *port, l net.Listener) {
	pause := firstPause
	for {
		conn, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors left, most often
			f.cfg.Log.Warn("accept a connection", "port", p.key, "err", err)
			select {
			case <-time.After(pause):
			case <-p.current().ctx.Done():
			}
			pause = min(2*pause, lastPause)
			continue
		}
		pause = firstPause
		r := p.current()
		select {
		case f.slots <- struct{}{}:
		case <-r.ctx.Done():
			abort(conn)
			continue
		}
		f.wait.Go(func() {
			defer func() { <-f.slots }()
			f.carry(r, conn.(*net.TCPConn))
		})
	}
}

// abort closes a client's connection with a reset.
func abort(conn net.Conn) {
	if c, ok := conn.(interface{ SetLinger(int) error }); ok {
		_ = c.SetLinger(0)
	}
	conn.Close()
}

// carry serves one client of a TCP port.
func (f *Forwarder) carry(r *route, client *net.TCPConn) {
	s, err := f.dial(r.ctx, r, client.RemoteAddr().(*net.TCPAddr).AddrPort())
	if err != nil {
		if r.ctx.Err() == nil {
			f.cfg.Log.Warn("connect a client to its container", "port", client.LocalAddr(), "to", r.forward.To, "err", err)
		}
		abort(client)
		return
	}
	join(r.ctx, client, s)
}

// join carries bytes and ends of streams both ways, each direction by itself. A direction that breaks, the guest's reset and
// ctx's end break all: the client gets a reset, and the guest a stream closed before its directions were ended, which is how
// guestapi.Connect spells one.
func join(ctx context.Context, client *net.TCPConn, s stream) {
	broken := func() {
		abort(client)
		s.Close()
	}
	defer context.AfterFunc(ctx, broken)()
	var both sync.WaitGroup
	both.Go(func() {
		if up(s, client) != nil || s.CloseWrite() != nil {
			broken()
		}
	})
	both.Go(func() {
		_, err := io.Copy(struct{ io.Writer }{client}, s)
		if err != nil || wasReset(s) || client.CloseWrite() != nil {
			broken()
		}
	})
	both.Wait()
	s.Close()
	client.Close()
}

// wasReset is whether the guest broke off a stream that has come to its end.
func wasReset(s stream) bool {
	r, ok := s.(interface{ Reset() bool })
	return ok && r.Reset()
}

// smallSize is what a silent connection holds of memory; largeSize what one read takes when there is much.
const (
	smallSize = 2 << 10
	largeSize = 64 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeSize]byte) }}

// up copies src to dst until src's end. While nothing comes it holds a small buffer alone.
func up(dst io.Writer, src io.Reader) error {
	small := make([]byte, smallSize)
	for {
		n, err := src.Read(small)
		if n > 0 {
			if _, werr := dst.Write(small[:n]); werr != nil {
				return werr
			}
		}
		if n == len(small) && err == nil {
			err = drain(dst, src)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// drain copies by large pieces for as long as they fill their buffer.
func drain(dst io.Writer, src io.Reader) error {
	buf := largeBuffers.Get().(*[largeSize]byte)
	defer largeBuffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err != nil || n < len(buf) {
			return err
		}
	}
}
