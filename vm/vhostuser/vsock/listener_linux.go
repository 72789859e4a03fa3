package vsock

import (
	"fmt"
	"net"
	"sync"

	"github.com/coracle-engine/coracle/vm"
)

// listener is a port of the host. Streams that the guest opens to it are confirmed at once and wait in queue.
type listener struct {
	d     *Device
	port  uint32
	queue chan *conn
	once  sync.Once
	done  chan struct{}
}

// Listen accepts streams that the guest opens to a port of the host (CID 2). It works before and between front ends. The
// error is of class vm.ErrPortInUse where the port is taken. Accepted connections have CloseWrite.
func (d *Device) Listen(port uint32) (net.Listener, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.isClosed() {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, net.ErrClosed)
	}
	if port == 0 || port == anyPort {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, vm.ErrConfig)
	}
	if d.listeners[port] != nil {
		return nil, fmt.Errorf("listen on vsock port %d: %w", port, vm.ErrPortInUse)
	}
	l := &listener{d: d, port: port, queue: make(chan *conn, maxConns), done: make(chan struct{})}
	d.listeners[port] = l
	return l, nil
}

// Accept returns the next stream; net.ErrClosed after Close, of the listener or of the device.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
	case c := <-l.queue:
		return c, nil
	}
	return nil, &net.OpError{Op: "accept", Net: "vsock", Addr: l.Addr(), Err: net.ErrClosed}
}

// Addr is the port listened on.
func (l *listener) Addr() net.Addr { return Addr{hostCID, l.port} }

// Close frees the port. Streams that nobody has accepted are reset.
func (l *listener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		err = nil
		l.d.mu.Lock()
		delete(l.d.listeners, l.port)
		l.d.mu.Unlock()
		close(l.done)
		for {
			select {
			case c := <-l.queue:
				c.abandon()
				continue
			default:
			}
			break
		}
	})
	return err
}
