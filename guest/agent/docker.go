//go:build linux

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/coracle-engine/coracle/guest/relay"
)

// startTime is how long a connection waits for an engine that is starting. Under emulation on a busy machine a first start
// can take this long.
const startTime = 90 * time.Second

// dockerPort joins each stream of PortDocker with dockerd.
type dockerPort struct {
	ready  func(ctx context.Context) error // returns nil when the engine answers
	socket string
	log    *slog.Logger
}

// stream is a connection with half-close, as vsock's and unix sockets' are.
type stream interface {
	net.Conn
	CloseWrite() error
}

func (d *dockerPort) serve(ctx context.Context, conn net.Conn) {
	s, ok := conn.(stream)
	if !ok {
		d.log.Error("refused a connection without half-close", "type", fmt.Sprintf("%T", conn))
		conn.Close()
		return
	}
	engine, err := d.dial(ctx)
	if err != nil {
		if err := relay.Refuse(s, "Docker is not running in the machine: "+err.Error()); err != nil {
			d.log.Debug("refuse a docker connection", "err", err)
		}
		return
	}
	if err := relay.Pipe(ctx, s, engine); err != nil {
		d.log.Debug("docker stream broke", "err", err)
	}
}

func (d *dockerPort) dial(ctx context.Context) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if err := d.ready(ctx); err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}
