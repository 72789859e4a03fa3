package vmtest

import (
	"fmt"
	"net"
	"sync"
)

// listener is one port of one side of a fake machine.
type listener struct {
	port    uint32
	queue   chan net.Conn
	release func()
	once    sync.Once
	done    chan struct{}
}

// Addr is where a fake listener listens.
type Addr uint32

// Network is "fake".
func (a Addr) Network() string { return "fake" }

func (a Addr) String() string { return fmt.Sprintf("fake:%d", uint32(a)) }

// offer hands c to the next Accept, which may come later; false if the backlog is full. The machine's mu is held, so that
// no offer comes after the end.
func (l *listener) offer(c net.Conn) bool {
	select {
	case l.queue <- c:
		return true
	default:
		return false
	}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, fmt.Errorf("accept on port %d: %w", l.port, net.ErrClosed)
	}
}

func (l *listener) Addr() net.Addr { return Addr(l.port) }

func (l *listener) Close() error {
	l.release()
	return nil
}

// end closes the listener and what nobody accepted. The machine's mu is held.
func (l *listener) end() {
	l.once.Do(func() {
		close(l.done)
		for {
			select {
			case c := <-l.queue:
				c.Close()
			default:
				return
			}
		}
	})
}
