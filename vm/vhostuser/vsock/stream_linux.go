package vsock

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vhostuser"
)

const (
	// closeTimeout is how long a closed stream waits for the guest's answer before it is reset, as in Linux.
	closeTimeout = 8 * time.Second
	// maxPending is how much a stream keeps of small writes when it may send no more packets.
	maxPending = 64 << 10
	// perPacket is what a packet costs the guest at least: Linux counts its own bookkeeping (576 bytes and more) against
	// the stream's buffer, and resets a stream whose packets exceed it however small they are.
	perPacket  = 1 << 10
	maxPackets = 1 << 10
)

// ports name a stream.
type ports struct{ host, guest uint32 }

// conn is one stream, from either side's request to the last packet about it. Its packets come from the device's queue 1
// on one goroutine; the application calls it from any. conn.go has what the application sees, this file the protocol.
type conn struct {
	d        *Device
	ports    ports
	answered chan struct{} // of a stream that we asked for: closed when the guest has said yes or no

	rmu, wmu sync.Mutex // one Read and one Write at a time; taken before mu

	mu     sync.Mutex
	r      reader
	w      writer
	open   bool  // both sides agreed to the stream, at some time
	gone   bool  // the device knows it no more; what was received can still be read
	closed bool  // by our application
	broken bool  // the guest ended it before each side had ended its own direction
	err    error // why it is gone
	closer *time.Timer
}

// reader is the direction from the guest.
type reader struct {
	ready    sync.Cond
	buf      buffer
	want     []byte        // where a waiting Read wants its data
	got      int           // what it was given
	eof      bool          // the guest sends no more
	fwd      atomic.Uint32 // bytes that the application has read, ever
	told     atomic.Uint32 // fwd as the guest knows it
	updating bool          // a credit update waits in the outbox; guarded by the outbox
	deadline deadline
}

// writer is the direction to the guest.
type writer struct {
	ready    sync.Cond
	pending  []byte   // small writes that wait for credit; goes before data
	data     []byte   // what is left of a waiting Write's own bytes
	cnt      uint32   // bytes sent, ever
	fwd      uint32   // bytes that the guest's application has read, ever
	alloc    uint32   // the guest's buffer
	ends     []uint32 // cnt after each packet that the guest has not read to its end
	asked    bool     // for credit, since it last grew
	refused  bool     // the guest receives no more
	shut     uint32   // which directions we want shut, once all is sent
	shutSent uint32   // and which of them the guest knows
	queued   bool     // waits in the outbox; guarded by the outbox
	deadline deadline
}

func newConn(d *Device, p ports) *conn {
	c := &conn{d: d, ports: p}
	c.r.ready.L, c.w.ready.L = &c.mu, &c.mu
	return c
}

func (c *conn) header(op uint16, flags uint32) header {
	return header{srcPort: c.ports.host, dstPort: c.ports.guest, op: op, flags: flags}
}

func (c *conn) send(op uint16, flags uint32) { c.d.out.send(c, c.header(op, flags)) }

// The methods below are called with c.mu held, if nothing else is said.

// receive handles a packet of the guest, whose data is in ch. It takes c.mu.
func (c *conn) receive(h *header, ch *vhostuser.Chain) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		if h.op != opReset {
			c.d.out.send(nil, c.header(opReset, 0))
		}
		return
	}
	if !c.credit(h) {
		c.reset()
		return
	}
	switch h.op {
	case opRW:
		if !c.open || !c.deliver(int(h.len), ch) {
			c.reset()
			return
		}
	case opCreditUpdate:
	case opCreditRequest:
		c.send(opCreditUpdate, 0)
	case opShutdown:
		c.shutdown(h.flags)
	case opResponse:
		if c.open {
			c.reset()
			return
		}
		c.open = true
		close(c.answered)
	case opReset:
		c.broken = !c.finished()
		c.end(syscall.ECONNRESET)
		return
	default:
		c.reset()
		return
	}
	if len(c.w.pending)+len(c.w.data) > 0 {
		c.d.out.pump(c)
		c.drained()
	}
}

// credit takes the guest's word on its buffer, unless a later word has overtaken it. It returns false if the guest claims to
// have read what was never sent.
func (c *conn) credit(h *header) bool {
	w := &c.w
	more := h.fwdCnt - w.fwd
	if int32(more) < 0 || h.op == opReset {
		return true
	}
	if more > w.cnt-w.fwd {
		return false
	}
	if more > 0 {
		w.asked = false
	}
	w.alloc, w.fwd = h.bufAlloc, h.fwdCnt
	n := 0
	for n < len(w.ends) && int32(w.fwd-w.ends[n]) >= 0 {
		n++
	}
	w.ends = append(w.ends[:0], w.ends[n:]...)
	return true
}

// deliver hands n bytes to the application: straight to a Read that waits, else to the buffer. It returns false if the
// guest sends more than it was allowed to.
func (c *conn) deliver(n int, ch *vhostuser.Chain) bool {
	r := &c.r
	if c.closed || r.eof || n == 0 {
		return true
	}
	if n > r.buf.free() {
		return false
	}
	if r.want != nil && r.buf.n == 0 {
		k, _ := ch.Read(r.want[:min(n, len(r.want))])
		r.want, r.got = nil, k
		r.fwd.Add(uint32(k))
		n -= k
	}
	if n > 0 {
		r.buf.fill(ch, n)
	}
	r.ready.Signal()
	return true
}

// shutdown takes note of the directions that the guest has ended.
func (c *conn) shutdown(flags uint32) {
	if flags == shutBoth && !c.finished() {
		c.broken = true
	}
	if flags&shutSend != 0 {
		c.r.eof = true
		c.r.ready.Broadcast()
	}
	if flags&shutReceive != 0 {
		c.w.refused = true
		c.w.pending = nil
		c.w.ready.Broadcast()
	}
	if c.r.eof && c.w.refused {
		c.send(opReset, 0) // the guest's close waits for it
		c.end(syscall.EPIPE)
	}
}

// finished is whether each side has ended its own direction: what comes then only buries the stream.
func (c *conn) finished() bool { return c.r.eof && c.w.shutSent&shutSend != 0 }

// consumed accounts for n bytes that the application has read, and tells the guest when that is worth a packet: a quarter
// of the smaller buffer, since the guest never has more in flight than its own buffer holds.
func (c *conn) consumed(n int) {
	r := &c.r
	fwd := r.fwd.Add(uint32(n))
	if !c.gone && !r.eof && fwd-r.told.Load() >= min(bufferSize, c.w.alloc)/4 {
		c.send(opCreditUpdate, 0)
	}
}

// packets is how many packets may be unread in the guest at once.
func (w *writer) packets() int { return int(min(max(w.alloc/perPacket, 1), maxPackets)) }

// allowance is how many bytes could be sent now.
func (c *conn) allowance() int {
	w := &c.w
	n, flight := len(w.pending)+len(w.data), w.cnt-w.fwd
	if n == 0 || !c.open || c.gone || w.refused || flight >= w.alloc || len(w.ends) >= w.packets() {
		return 0
	}
	return min(n, int(w.alloc-flight))
}

// next takes up to n bytes to send; they are good until c.mu is let go.
func (c *conn) next(n int) []byte {
	from := &c.w.pending
	if len(*from) == 0 {
		from = &c.w.data
	}
	b := (*from)[:min(n, len(*from))]
	*from = (*from)[len(b):]
	return b
}

func (c *conn) sent(n int) {
	c.w.cnt += uint32(n)
	c.w.ends = append(c.w.ends, c.w.cnt)
}

// drained goes on after something was sent or can be sent no more: it keeps a small write that has to wait for the
// guest to read packets, wakes the writer, and shuts down what is to be shut down.
func (c *conn) drained() {
	w := &c.w
	if len(w.data) > 0 && len(w.ends) >= w.packets() {
		n := min(len(w.data), maxPending-len(w.pending))
		w.pending = append(w.pending, w.data[:n]...)
		w.data = w.data[n:]
		if !w.asked {
			w.asked = true
			c.send(opCreditRequest, 0)
		}
	}
	if len(w.data) > 0 {
		return
	}
	w.ready.Signal()
	if len(w.pending) == 0 && w.shut != w.shutSent && !c.gone {
		w.shutSent = w.shut
		c.send(opShutdown, w.shut)
	}
}

// reset ends the stream and tells the guest.
func (c *conn) reset() {
	if !c.gone {
		c.send(opReset, 0)
		c.end(syscall.ECONNRESET)
	}
}

// end takes the stream from the device. What was received can still be read; then comes err, unless the guest had said
// that nothing follows.
func (c *conn) end(err error) {
	if c.gone {
		return
	}
	c.gone, c.err = true, err
	if c.closer != nil {
		c.closer.Stop()
	}
	c.w.pending = nil
	c.d.forget(c)
	if c.answered != nil && !c.open {
		if err == syscall.ECONNRESET {
			c.err = vm.ErrRefused
		}
		close(c.answered)
	}
	c.r.ready.Broadcast()
	c.w.ready.Broadcast()
}

// linger ends a closed stream in time.
func (c *conn) linger() {
	c.closer = time.AfterFunc(closeTimeout, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.reset()
	})
}

// abandon gives up a stream that was asked for. It takes c.mu.
func (c *conn) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.reset()
}

// outcome waits for the guest's answer.
func (c *conn) outcome(ctx context.Context) error {
	select {
	case <-c.answered:
	case <-ctx.Done():
		c.abandon()
		return ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open {
		return nil
	}
	return c.err
}

// deadline is a point in time after which a direction's calls fail; guarded by the stream's mu.
type deadline struct {
	timer   *time.Timer
	passed  bool
	version int
}

func (d *deadline) set(t time.Time, ready *sync.Cond) {
	if d.timer != nil {
		d.timer.Stop()
	}
	d.timer, d.passed = nil, false
	d.version++
	if t.IsZero() {
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed = true
		ready.Broadcast()
		return
	}
	version := d.version
	d.timer = time.AfterFunc(wait, func() {
		ready.L.Lock()
		defer ready.L.Unlock()
		if d.version == version {
			d.passed = true
			ready.Broadcast()
		}
	})
}

// readError is why nothing can be read although the stream's buffer is empty; early is what comes before buffered data.
func (c *conn) readError(early bool) error {
	switch {
	case c.closed:
		return net.ErrClosed
	case c.r.deadline.passed:
		return os.ErrDeadlineExceeded
	case early:
		return nil
	case c.r.eof:
		return io.EOF
	}
	return c.err
}

func (c *conn) writeError() error {
	switch {
	case c.closed:
		return net.ErrClosed
	case c.w.deadline.passed:
		return os.ErrDeadlineExceeded
	case c.w.shut != 0, c.w.refused:
		return syscall.EPIPE
	}
	return c.err
}
