package vsock

import (
	"errors"
	"sync"

	"github.com/coracle-engine/coracle/vm/vhostuser"
)

const (
	// softControl is how many packets may wait for the guest's buffers before the guest's requests go unanswered.
	softControl = 4096
	// maxControl is how many may wait at all: a guest that takes so few has given up its device.
	maxControl = 16 * softControl
)

// outbox is the way to the guest: queue 0, whose buffers the guest offers and we fill. A packet is written by whoever has
// it, on the caller's own goroutine, as long as there are buffers; what finds none waits here and goes out in turn when the
// guest kicks. Packets of one stream keep their order: data waits while any control packet does.
type outbox struct {
	cid uint64

	mu      sync.Mutex       // taken with a stream's mu held, never the other way round
	q       *vhostuser.Queue // nil while stopped
	chain   vhostuser.Chain
	frame   [headerSize]byte
	control []control
	waiting []*conn // streams with data and credit that found no buffer, one packet each in turn
}

// control is a packet without data that waits for a buffer.
type control struct {
	c *conn // nil for an answer that belongs to no stream
	h header
}

// run serves those who wait whenever the guest has offered buffers.
func (o *outbox) run(q *vhostuser.Queue) error {
	o.mu.Lock()
	o.q = q
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.q = nil
		o.mu.Unlock()
	}()
	for {
		for o.flush() && o.turn() {
		}
		if err := q.Wait(); err != nil {
			return err
		}
	}
}

// send sends a packet without data: for c, or for nobody where c is nil.
func (o *outbox) send(c *conn, h header) {
	h.srcCID, h.dstCID, h.typ = hostCID, o.cid, typeStream
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.control) == 0 && o.take() {
		o.put(c, h, nil)
		o.q.Notify()
		return
	}
	switch {
	case c == nil && len(o.control) >= softControl:
		return // the guest floods us and does not listen
	case len(o.control) >= maxControl:
		if o.q != nil {
			o.q.Fail(errors.New("guest takes no packets"))
		}
		return
	case c != nil && h.op == opCreditUpdate:
		if c.r.updating {
			return
		}
		c.r.updating = true
	}
	o.control = append(o.control, control{c, h})
}

// full is whether the guest must take packets before it may ask for more.
func (o *outbox) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.control) >= softControl
}

// take makes o.chain the guest's next buffer. If there is none, the guest's next offer kicks.
func (o *outbox) take() bool {
	if o.q == nil {
		return false
	}
	ok, err := o.q.Pop(&o.chain)
	if !ok && err == nil && o.q.EnableKicks() {
		ok, err = o.q.Pop(&o.chain)
	}
	if !ok || err != nil {
		return false
	}
	if o.chain.Writable() <= headerSize {
		o.q.Fail(errors.New("buffer without room for a packet"))
		return false
	}
	return true
}

// put writes one packet into o.chain, which has room for it, and gives it to the guest without a call.
func (o *outbox) put(c *conn, h header, data []byte) {
	h.len = uint32(len(data))
	if c != nil {
		h.bufAlloc, h.fwdCnt = bufferSize, c.r.fwd.Load()
		c.r.told.Store(h.fwdCnt)
	}
	h.encode(&o.frame)
	o.chain.Write(o.frame[:])
	o.chain.Write(data)
	o.q.Push(&o.chain)
}

// flush sends the control packets that wait, and says whether none is left.
func (o *outbox) flush() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.control) > 0 {
		if !o.take() {
			break
		}
		e := o.control[0]
		o.control = o.control[1:]
		if e.c != nil && e.h.op == opCreditUpdate {
			e.c.r.updating = false
		}
		o.put(e.c, e.h, nil)
	}
	if o.q != nil {
		o.q.Notify()
	}
	return len(o.control) == 0
}

// turn sends one packet of the stream that waits longest. It returns false if nobody waits or there is no buffer.
func (o *outbox) turn() bool {
	o.mu.Lock()
	if len(o.waiting) == 0 {
		o.mu.Unlock()
		return false
	}
	c := o.waiting[0]
	o.mu.Unlock()

	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.drained()
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.waiting) == 0 || o.waiting[0] != c { // cleared meanwhile
		return true
	}
	n := c.allowance()
	if n > 0 && (len(o.control) > 0 || !o.packet(c, n)) {
		return len(o.control) > 0
	}
	o.waiting[0] = nil
	o.waiting = o.waiting[1:]
	if c.w.queued = c.allowance() > 0; c.w.queued {
		o.waiting = append(o.waiting, c)
	}
	if o.q != nil {
		o.q.Notify()
	}
	return true
}

// pump sends what c has, as far as its credit and the guest's buffers go. c.mu is held.
func (o *outbox) pump(c *conn) {
	n := c.allowance()
	if n == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.w.queued {
		return
	}
	for n > 0 {
		if len(o.control)+len(o.waiting) > 0 || !o.packet(c, n) {
			c.w.queued = true
			o.waiting = append(o.waiting, c)
			break
		}
		n = c.allowance()
	}
	if o.q != nil {
		o.q.Notify()
	}
}

// packet sends up to n bytes of c in one packet, and returns false if the guest offers no buffer.
func (o *outbox) packet(c *conn, n int) bool {
	if !o.take() {
		return false
	}
	data := c.next(min(n, o.chain.Writable()-headerSize, maxPayload))
	h := c.header(opRW, 0)
	h.srcCID, h.dstCID, h.typ = hostCID, o.cid, typeStream
	o.put(c, h, data)
	c.sent(len(data))
	return true
}

// clear forgets what waits: its streams are over.
func (o *outbox) clear() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.waiting {
		c.w.queued = false
	}
	o.control, o.waiting = nil, nil
}
