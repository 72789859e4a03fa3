package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrStopped is what Queue.Wait returns when the front end has stopped the queue.
var ErrStopped = errors.New("queue is stopped")

const (
	maxQueueSize = 32768
	noNotify     = 1 // used.flags: the driver need not kick
	noInterrupt  = 1 // avail.flags: the device need not call
)

// Queue is a split virtqueue (virtio 1.2 section 2.7) that the front end has started. Pop, Push, Notify and the two about
// kicks are for one goroutine at a time; Wait may run beside them. Any error is final: nothing more comes out of the ring,
// and Wait returns the same error.
type Queue struct {
	index int
	size  uint16
	fresh bool
	event bool // VIRTIO_RING_F_EVENT_IDX was negotiated
	walk  walker
	ring  ring

	next      uint16 // the available entry to take next
	avail     uint16 // avail.idx as last seen
	used      uint16 // used.idx as published
	signalled uint16 // used.idx at the last Notify
	first     bool   // no Notify yet: what the driver expects is unknown
	err       atomic.Pointer[error]

	kick    *os.File
	counter [8]byte // what was read from kick
	call    *caller
}

// ring is where a queue's parts lie in the guest's memory.
type ring struct {
	desc       []byte
	avail      []byte  // avail.ring
	used       []byte  // used.ring
	availFlags half    // avail.flags
	availIdx   half    // avail.idx
	usedEvent  half    // which used.idx the driver wants to be called at
	availEvent half    // which avail.idx we want to be kicked at
	usedWord   *uint32 // used.flags and used.idx
	usedFlags  uint16
}

// half is a 16-bit field of shared memory, reached through the aligned 32-bit word around it: Go has no 16-bit atomics.
type half struct {
	word  *uint32
	shift uint32
}

func halfAt(mapping []byte, off int) half {
	return half{wordAt(mapping, off&^3), uint32(off&2) * 8}
}

// wordAt needs off to be a multiple of 4; a mapping starts on a page.
func wordAt(mapping []byte, off int) *uint32 {
	return (*uint32)(unsafe.Pointer(&mapping[off : off+4][0]))
}

func (h half) load() uint16 { return uint16(atomic.LoadUint32(h.word) >> h.shift) }

// store is sequentially consistent, and leaves the other half alone whoever writes it.
func (h half) store(v uint16) {
	for {
		old := atomic.LoadUint32(h.word)
		if atomic.CompareAndSwapUint32(h.word, old, old&^(0xffff<<h.shift)|uint32(v)<<h.shift) {
			return
		}
	}
}

// locate finds a ring of size entries in mem.
func locate(mem *memory, a ringAddr, size uint16) (ring, error) {
	var r ring
	n := int(size)
	if n == 0 || n > maxQueueSize || n&(n-1) != 0 {
		return r, fmt.Errorf("bad queue size %d", n)
	}
	if a.desc%16 != 0 || a.avail%2 != 0 || a.used%4 != 0 {
		return r, fmt.Errorf("ring is not aligned: %+v", a)
	}
	m, off, err := mem.user(a.desc, uint64(descSize*n))
	if err != nil {
		return r, fmt.Errorf("descriptor table: %w", err)
	}
	r.desc = m[off : off+descSize*n]
	if m, off, err = mem.user(a.avail, uint64(6+2*n)); err != nil || off%2 != 0 || (off+6+2*n+3)&^3 > len(m) {
		return r, fmt.Errorf("available ring: %w", errOutside)
	}
	r.availFlags, r.availIdx, r.usedEvent = halfAt(m, off), halfAt(m, off+2), halfAt(m, off+4+2*n)
	r.avail = m[off+4 : off+4+2*n]
	if m, off, err = mem.user(a.used, uint64(6+8*n)); err != nil || off%4 != 0 || off+8+8*n > len(m) {
		return r, fmt.Errorf("used ring: %w", errOutside)
	}
	r.usedWord, r.availEvent = wordAt(m, off), halfAt(m, off+4+8*n)
	r.used = m[off+4 : off+4+8*n]
	return r, nil
}

// Index is the queue's number in its device.
func (q *Queue) Index() int { return q.index }

// Fresh is whether a driver has just set the queue up, rather than the front end resumed it where it had stopped.
func (q *Queue) Fresh() bool { return q.fresh }

// Pop takes the next request of the guest into c. It returns false if there is none, and ErrStopped as Wait does.
func (q *Queue) Pop(c *Chain) (bool, error) {
	if err := q.failed(); err != nil {
		return false, err
	}
	if q.next == q.avail {
		q.avail = q.ring.availIdx.load()
		n := q.avail - q.next
		if n > q.size {
			return false, q.fail(fmt.Errorf("available index jumps by %d in a ring of %d", n, q.size))
		}
		if n == 0 {
			return false, nil
		}
	}
	if q.next-q.used >= q.size {
		return false, q.fail(errors.New("more requests at once than the ring holds"))
	}
	head := binary.LittleEndian.Uint16(q.ring.avail[2*int(q.next&(q.size-1)):])
	if err := q.walk.chain(c, q.ring.desc, head); err != nil {
		return false, q.fail(err)
	}
	q.next++
	return true, nil
}

// Push gives a request back with what was written to it. The guest may use its memory from now on.
func (q *Queue) Push(c *Chain) {
	e := q.ring.used[8*int(q.used&(q.size-1)):]
	binary.LittleEndian.PutUint32(e, uint32(c.head))
	binary.LittleEndian.PutUint32(e[4:], uint32(c.done))
	q.used++
	q.publish()
}

func (q *Queue) publish() {
	atomic.StoreUint32(q.ring.usedWord, uint32(q.ring.usedFlags)|uint32(q.used)<<16)
}

// Notify calls the driver if it wants to know of what was pushed since the last Notify.
func (q *Queue) Notify() {
	old := q.signalled
	if q.signalled = q.used; old == q.used {
		return
	}
	want := q.ring.availFlags.load()&noInterrupt == 0
	if q.event {
		want = q.first || q.used-q.ring.usedEvent.load()-1 < q.used-old
	}
	if q.first = false; want {
		q.call.signal()
	}
}

// EnableKicks asks the driver to kick at its next request. It returns true if one is there already, for which no kick may
// come.
func (q *Queue) EnableKicks() bool {
	if q.event {
		q.ring.availEvent.store(q.next)
	} else if q.ring.usedFlags != 0 {
		q.ring.usedFlags = 0
		q.publish()
	}
	return q.ring.availIdx.load() != q.next
}

// DisableKicks tells the driver that kicks are not needed until EnableKicks. They may come nevertheless.
func (q *Queue) DisableKicks() {
	if !q.event && q.ring.usedFlags == 0 { // with EVENT_IDX a kick disables itself
		q.ring.usedFlags = noNotify
		q.publish()
	}
}

// Wait blocks until the driver has kicked. It returns ErrStopped when the front end stops the queue.
func (q *Queue) Wait() error {
	_, err := q.kick.Read(q.counter[:])
	switch {
	case q.failed() != nil:
		return q.failed()
	case err == nil:
		return nil
	}
	return fmt.Errorf("wait for a kick: %w", err)
}

// Fail marks the queue as broken and ends Wait: for a device that finds nonsense in a Chain. It returns err with the queue
// named.
func (q *Queue) Fail(err error) error { return q.fail(err) }

// fail marks the queue as broken and ends Wait.
func (q *Queue) fail(err error) error {
	err = fmt.Errorf("queue %d: %w", q.index, err)
	q.end(err)
	return q.failed()
}

func (q *Queue) failed() error {
	if err := q.err.Load(); err != nil {
		return *err
	}
	return nil
}

// stop makes Pop and Wait return ErrStopped, even while the guest goes on to fill the ring.
func (q *Queue) stop() { q.end(ErrStopped) }

func (q *Queue) end(err error) {
	q.err.CompareAndSwap(nil, &err)
	q.kick.SetReadDeadline(time.Unix(1, 0))
}

// caller is the eventfd by which the driver is called. The front end replaces it while the queue runs.
type caller struct {
	mu   sync.Mutex
	file *os.File
	raw  syscall.RawConn
}

var one = binary.NativeEndian.AppendUint64(nil, 1)

// writeOne adds 1 to an eventfd. It never waits: a counter that is full is as good as signalled.
func writeOne(fd uintptr) bool {
	unix.Write(int(fd), one)
	return true
}

func (c *caller) signal() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.raw != nil {
		c.raw.Write(writeOne)
	}
}

// set replaces the descriptor, and closes the one before.
func (c *caller) set(f *os.File) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.file != nil {
		c.file.Close()
	}
	c.file, c.raw = f, nil
	if f == nil {
		return
	}
	if raw, err := f.SyscallConn(); err == nil {
		c.raw = raw
	}
}
