package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/mdlayher/vsock"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/share"
	"github.com/coracle-engine/coracle/guest/watch"
)

// product is those parts of the real guest that a benchmark measures the host's with. Their streams are not greeted here.
type product struct {
	shares      *share.Shares
	connections *watch.Connections
	ports       *watch.Ports
}

func newProduct() *product {
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	p := &product{shares: share.New(log, func() <-chan struct{} { return nil })}
	p.ports = watch.NewPorts(log, func(list []api.Forward) { go p.published(list) })
	p.connections = watch.NewConnections(log, p.ports, watch.NewClients(log, nil)) // which are never switched on
	return p
}

// serve serves the ports of these parts. All ends with ctx, and is in wg.
func (p *product) serve(ctx context.Context, wg *sync.WaitGroup) error {
	if err := listen(ctx, wg, api.PortReplay, p.shares.Serve); err != nil {
		return err
	}
	return listen(ctx, wg, api.PortConnect, p.connections.Serve)
}

// published says of all ports that the host has them open.
func (p *product) published(list []api.Forward) {
	var all []api.Publication
	for _, f := range list {
		all = append(all, api.Publication{ID: f.ID})
	}
	p.ports.Published(all)
}

// publish lets the host's streams lead to a TCP port of this guest.
func (p *product) publish(ctx context.Context, to string) error {
	_, err := p.ports.Publish(ctx, api.Forward{Protocol: "tcp", To: to})
	return err
}

// show has a share of the host be at a path.
func (p *product) show(ctx context.Context, tag, path string) error {
	return p.shares.Apply(ctx, []api.Share{{Tag: tag, Path: path}})
}

// listen serves a port of vsock.
func listen(ctx context.Context, wg *sync.WaitGroup, port uint32, serve func(context.Context, net.Conn)) error {
	l, err := vsock.Listen(port, nil)
	if err != nil {
		return fmt.Errorf("listen on port %d: %w", port, err)
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	wg.Go(func() {
		defer stop()
		defer l.Close()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { serve(ctx, c) })
		}
	})
	return nil
}
