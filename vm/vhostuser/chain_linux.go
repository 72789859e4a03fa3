package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
)

const (
	descSize     = 16
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	// maxChain is how many descriptors a chain may have, in and out of an indirect table together. Linux and QEMU have the
	// same limit; it also ends a chain that loops.
	maxChain = 1024
)

// Chain is one request of the guest: bytes that its driver wrote for the device, then room for the device's answer, both
// scattered over guest memory. The zero Chain is ready for Queue.Pop and can be used again after Push. The guest can
// change the bytes at any time, so whoever checks a value reads it once, into memory of its own.
type Chain struct {
	head uint16
	out  cursor // for us to read
	in   cursor // for us to write
	done int    // bytes written to in
}

// NewChain makes a Chain over plain memory, for a device's own tests. It cannot be pushed to a Queue.
func NewChain(out, in [][]byte) *Chain {
	c := &Chain{out: cursor{segs: out}, in: cursor{segs: in}}
	c.count()
	return c
}

// count sets how many bytes are ahead.
func (c *Chain) count() {
	for _, cur := range []*cursor{&c.out, &c.in} {
		for _, s := range cur.segs {
			cur.left += len(s)
		}
	}
}

// cursor walks segments.
type cursor struct {
	segs [][]byte
	next int // segs[next:] and the rest of the current one are ahead
	rest []byte
	left int // bytes ahead
}

func (c *cursor) reset() { *c = cursor{segs: c.segs[:0]} }

// take returns the next contiguous bytes, at most n, nil at the end.
func (c *cursor) take(n int) []byte {
	for len(c.rest) == 0 {
		if c.next == len(c.segs) {
			return nil
		}
		c.rest = c.segs[c.next]
		c.next++
	}
	b := c.rest[:min(n, len(c.rest))]
	c.rest = c.rest[len(b):]
	c.left -= len(b)
	return b
}

// ahead appends what is ahead to segs.
func (c *cursor) ahead(segs [][]byte) [][]byte {
	if len(c.rest) > 0 {
		segs = append(segs, c.rest)
	}
	return append(segs, c.segs[c.next:]...)
}

// Readable is how many bytes Read has yet to give.
func (c *Chain) Readable() int { return c.out.left }

// Writable is how many bytes Write has yet to take.
func (c *Chain) Writable() int { return c.in.left }

// Read reads what the driver wrote, across descriptors. It fills p unless the bytes end before.
func (c *Chain) Read(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		b := c.out.take(len(p) - n)
		if b == nil {
			break
		}
		n += copy(p[n:], b)
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Write writes the device's answer, across descriptors. It returns io.ErrShortWrite where p does not fit.
func (c *Chain) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		b := c.in.take(len(p) - n)
		if b == nil {
			break
		}
		n += copy(b, p[n:])
	}
	c.done += n
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// Unread appends to segs the bytes that Read has yet to give, where they lie in the guest's memory, which the guest can
// change at any time. They may be used until Push.
func (c *Chain) Unread(segs [][]byte) [][]byte { return c.out.ahead(segs) }

// Room appends to segs the room that Write has yet to fill, where it lies in the guest's memory. It may be written until
// Push; Wrote says how much was.
func (c *Chain) Room(segs [][]byte) [][]byte { return c.in.ahead(segs) }

// Wrote counts the first n bytes of Room as written, at most all of them.
func (c *Chain) Wrote(n int) {
	for n > 0 {
		b := c.in.take(n)
		if b == nil {
			return
		}
		n -= len(b)
		c.done += len(b)
	}
}

// walker follows descriptors from one table.
type walker struct {
	mem      *memory
	indirect bool // VIRTIO_RING_F_INDIRECT_DESC was negotiated
	visited  int
	total    uint64
}

// chain fills c from the descriptor head of table.
func (w *walker) chain(c *Chain, table []byte, head uint16) error {
	c.head, c.done = head, 0
	c.out.reset()
	c.in.reset()
	w.visited, w.total = 0, 0
	if err := w.walk(c, table, head, false); err != nil {
		return fmt.Errorf("descriptor chain %d: %w", head, err)
	}
	c.count()
	return nil
}

func (w *walker) walk(c *Chain, table []byte, index uint16, nested bool) error {
	for {
		if int(index) >= len(table)/descSize {
			return fmt.Errorf("descriptor %d outside its table", index)
		}
		if w.visited++; w.visited > maxChain {
			return errors.New("too long, or a loop")
		}
		var d [descSize]byte // a copy: the guest may change the original between two looks
		copy(d[:], table[int(index)*descSize:])
		addr, length := binary.LittleEndian.Uint64(d[0:]), binary.LittleEndian.Uint32(d[8:])
		flags := binary.LittleEndian.Uint16(d[12:])
		var err error
		if flags&descIndirect != 0 {
			err = w.table(c, addr, length, flags, nested)
		} else {
			err = w.add(c, addr, length, flags)
		}
		if err != nil || flags&descNext == 0 {
			return err
		}
		index = binary.LittleEndian.Uint16(d[14:])
	}
}

// table follows an indirect table (virtio 1.2 section 2.7.5.3).
func (w *walker) table(c *Chain, addr uint64, length uint32, flags uint16, nested bool) error {
	if !w.indirect || nested || flags&descNext != 0 || length == 0 || length%descSize != 0 || length > maxChain*descSize {
		return fmt.Errorf("bad indirect table: %d bytes, flags %#x, nested %t", length, flags, nested)
	}
	segs, err := w.mem.guest(nil, addr, uint64(length))
	if err != nil {
		return fmt.Errorf("indirect table: %w", err)
	}
	table := segs[0]
	if len(segs) > 1 {
		table = make([]byte, 0, length)
		for _, s := range segs {
			table = append(table, s...)
		}
	}
	return w.walk(c, table, 0, true)
}

// add appends one buffer to the chain.
func (w *walker) add(c *Chain, addr uint64, length uint32, flags uint16) error {
	if w.total += uint64(length); w.total > math.MaxUint32 {
		return errors.New("longer than 4 GiB")
	}
	cur := &c.out
	if flags&descWrite != 0 {
		cur = &c.in
	} else if len(c.in.segs) > 0 {
		return errors.New("readable descriptor after a writable one")
	}
	var err error
	cur.segs, err = w.mem.guest(cur.segs, addr, uint64(length))
	return err
}
