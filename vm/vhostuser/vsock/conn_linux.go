package vsock

import (
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Addr is one end of a stream.
type Addr struct {
	CID  uint64 // 2 is the host
	Port uint32
}

// Network returns "vsock".
func (Addr) Network() string { return "vsock" }

func (a Addr) String() string { return fmt.Sprintf("%d:%d", a.CID, a.Port) }

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// fail makes the error that the application sees.
func (c *conn) fail(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "vsock", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

// LocalAddr returns the host's end.
func (c *conn) LocalAddr() net.Addr { return Addr{hostCID, c.ports.host} }

// RemoteAddr returns the guest's end.
func (c *conn) RemoteAddr() net.Addr { return Addr{c.d.cid, c.ports.guest} }

// Read reads from the guest. After the guest has reset the stream it gives what had come before, then the error.
func (c *conn) Read(p []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.await(p)
	if n == 0 && err == nil {
		n = c.r.buf.read(p)
		c.consumed(n)
	}
	return n, c.fail("read", err)
}

// await blocks until the buffer has data. If p is not empty, data may be put there instead; then it returns how much.
func (c *conn) await(p []byte) (int, error) {
	r := &c.r
	for {
		if err := c.readError(r.buf.n > 0); err != nil {
			return 0, err
		}
		if r.buf.n > 0 {
			return 0, nil
		}
		if len(p) > 0 {
			r.want = p
		}
		r.ready.Wait()
		n := r.got
		r.want, r.got = nil, 0
		if n > 0 {
			c.consumed(0)
			return n, nil
		}
	}
}

// WriteTo writes what the guest sends to w until the guest ends it, without a buffer between. What w has not taken is not
// acknowledged to the guest.
func (c *conn) WriteTo(w io.Writer) (int64, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	var total int64
	for {
		c.mu.Lock()
		_, err := c.await(nil)
		b := c.r.buf.peek()
		b = b[:min(len(b), bufferSize/4)] // so that the guest goes on sending while w writes
		c.mu.Unlock()
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, c.fail("read", err)
		}
		n, err := w.Write(b)
		total += int64(n)
		c.mu.Lock()
		if c.r.buf.n > 0 { // nothing is left after Close
			c.r.buf.drop(n)
			c.consumed(n)
		}
		c.mu.Unlock()
		if err != nil {
			return total, err
		}
		if n < len(b) {
			return total, io.ErrShortWrite
		}
	}
}

// Write sends p to the guest. It blocks while the guest's application reads too little; the data of another stream is not
// held up by that.
func (c *conn) Write(p []byte) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	w := &c.w
	w.data = p
	var err error
	for {
		if err = c.writeError(); err != nil {
			break
		}
		c.d.out.pump(c)
		if c.drained(); len(w.data) == 0 {
			break
		}
		w.ready.Wait()
		if len(w.data) == 0 {
			break
		}
	}
	n := len(p) - len(w.data)
	w.data = nil
	c.drained()
	return n, c.fail("write", err)
}

// ReadFrom sends what r has until its end.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	buf := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buf)
	var total int64
	for {
		n, err := r.Read(*buf)
		if n > 0 {
			m, werr := c.Write((*buf)[:n])
			total += int64(m)
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// CloseWrite tells the guest that no more follows. The guest can go on to send.
func (c *conn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	if c.gone {
		return c.fail("close", c.err)
	}
	c.w.shut |= shutSend
	c.w.ready.Broadcast()
	c.drained()
	return nil
}

// Reset is whether the guest broke the stream off: it closed it before each side had ended its own direction by CloseWrite.
// Read and WriteTo make no difference between that and an orderly end, as the guest's own kernel makes none.
func (c *conn) Reset() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.broken
}

// Close ends both directions. What was written still goes out; what was received and not read is lost. Where both sides have
// ended their directions before, the guest is told nothing more: it could take that for a stream that was broken off.
func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	c.closed = true
	c.r.buf = buffer{} // not to its pool: a WriteTo may be using it
	c.r.deadline.set(time.Time{}, &c.r.ready)
	c.w.deadline.set(time.Time{}, &c.w.ready)
	c.r.ready.Broadcast()
	c.w.ready.Broadcast()
	if !c.gone {
		if !c.r.eof || c.w.shut&shutSend == 0 {
			c.w.shut = shutBoth
		}
		c.linger()
		c.drained()
	}
	return nil
}

// SetDeadline sets both deadlines.
func (c *conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline sets when Read and WriteTo give up; the zero time is never.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.fail("set", net.ErrClosed)
	}
	c.r.deadline.set(t, &c.r.ready)
	return nil
}

// SetWriteDeadline sets when Write gives up; the zero time is never.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.fail("set", net.ErrClosed)
	}
	c.w.deadline.set(t, &c.w.ready)
	return nil
}
