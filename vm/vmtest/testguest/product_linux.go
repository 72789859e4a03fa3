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
)

// product is those parts of the real guest that a benchmark measures the host's with. Their streams are not greeted here.
type product struct {
	shares *share.Shares
}

func newProduct() *product {
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	return &product{shares: share.New(log, func() <-chan struct{} { return nil })}
}

// serve serves the ports of these parts. All ends with ctx, and is in wg.
func (p *product) serve(ctx context.Context, wg *sync.WaitGroup) error {
	return listen(ctx, wg, api.PortReplay, p.shares.Serve)
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
