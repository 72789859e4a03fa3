//go:build linux

package agent

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
)

const (
	greetingTime = 30 * time.Second
	maxStrangers = 64   // connections that have not greeted yet
	maxStreams   = 4096 // connections of one port
)

// gate is a listener that lets in only whom the host is: it drops peers that fromHost denies, and those that do not greet
// with the boot's secret in time.
type gate struct {
	net.Listener
	secret   []byte
	fromHost func(net.Addr) bool
	log      *slog.Logger
	admitted chan net.Conn
	ended    chan struct{} // closed when the listener beneath ended
	err      error         // valid after ended
}

func newGate(l net.Listener, secret []byte, fromHost func(net.Addr) bool, log *slog.Logger) *gate {
	g := &gate{Listener: l, secret: secret, fromHost: fromHost, log: log, admitted: make(chan net.Conn), ended: make(chan struct{})}
	go g.run()
	return g
}

func (g *gate) run() {
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxStrangers)
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			g.err = err
			break
		}
		if !g.fromHost(conn.RemoteAddr()) {
			g.log.Warn("refused a connection that is not the host's", "from", conn.RemoteAddr())
			conn.Close()
			continue
		}
		slots <- struct{}{} // greetingTime bounds the wait
		wg.Go(func() {
			ok := g.check(conn)
			<-slots
			if ok {
				g.admit(conn)
			}
		})
	}
	close(g.ended)
	wg.Wait()
}

func (g *gate) check(conn net.Conn) bool {
	err := conn.SetDeadline(time.Now().Add(greetingTime))
	if err == nil {
		err = api.CheckGreeting(conn, g.secret)
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		g.log.Warn("refused a connection", "from", conn.RemoteAddr(), "err", err)
		conn.Close()
	}
	return err == nil
}

func (g *gate) admit(conn net.Conn) {
	select {
	case g.admitted <- conn:
	case <-g.ended:
		conn.Close()
	}
}

// Accept implements net.Listener.
func (g *gate) Accept() (net.Conn, error) {
	select {
	case conn := <-g.admitted:
		return conn, nil
	case <-g.ended:
		return nil, g.err
	}
}

// streams serves each connection of l with serve, in a goroutine of its own and at most limit at once, until ctx ends or l
// does. It returns when all have ended. serve closes its connection, and ends when ctx does.
func streams(ctx context.Context, l net.Listener, limit int, serve func(context.Context, net.Conn)) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	slots := make(chan struct{}, limit)
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return ctx.Err()
		}
		wg.Go(func() {
			defer func() { <-slots }()
			serve(ctx, conn)
		})
	}
}
