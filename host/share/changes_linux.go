package share

import (
	"context"
	"net"

	"github.com/coracle-engine/coracle/host/share/notify"
)

type changes struct{ quit chan struct{} }

func (c *changes) init(int) { c.quit = make(chan struct{}) }
func (c *changes) clear()   {}

func (s *Server) listen(events <-chan []notify.Event) {
	for {
		select {
		case <-s.changes.quit:
			return
		case _, ok := <-events:
			if !ok {
				return
			}
		}
	}
}

// Replay keeps the streams.
func (s *Server) Replay(ctx context.Context, dial func(context.Context) (net.Conn, error)) error {
	<-ctx.Done()
	return nil
}
