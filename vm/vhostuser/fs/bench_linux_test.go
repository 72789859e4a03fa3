package fs

import (
	"testing"

	"github.com/coracle-engine/coracle/vm/vhostuser/vhosttest"
)

// fixed answers at once, with the header alone or with all the room a READ has.
func fixed(op opcode, in, out [][]byte) int {
	n := 0
	for i, b := range out {
		if op == opRead && i > 0 {
			clear(b)
		}
		n += len(b)
	}
	if op != opRead {
		n = outHeaderSize
	}
	return n
}

// reuse is a request that is sent again and again.
type reuse struct {
	g  *guest
	ds []vhosttest.Desc
}

func newReuse(g *guest, op opcode, room int) *reuse {
	r := &reuse{g: g, ds: g.put(message(op, 1, make([]byte, 40)), 4096)}
	at := g.f.Alloc(room)
	r.ds = append(r.ds, vhosttest.Desc{Addr: at, Len: outHeaderSize, Flags: vhosttest.Write})
	for off := outHeaderSize; off < room; off += 4096 {
		r.ds = append(r.ds, vhosttest.Desc{Addr: at + uint64(off), Len: uint32(min(4096, room-off)), Flags: vhosttest.Write})
	}
	return r
}

func (r *reuse) send() {
	q := r.g.queues[1]
	q.Add(r.ds...)
	q.Publish()
	q.Kick(false)
}

// wait takes one answer.
func (r *reuse) wait() {
	q := r.g.queues[1]
	for {
		if _, _, ok := q.Take(); ok {
			return
		}
		if !q.Arm() {
			q.Wait()
		}
	}
}

// BenchmarkRoundTrip is one request at a time: answered by the leader, by a worker, and with data.
func BenchmarkRoundTrip(b *testing.B) {
	for _, c := range []struct {
		name string
		op   opcode
		room int
	}{
		{"leader", opGetattr, 120}, {"worker", opFsync, outHeaderSize}, {"read 4 KiB", opRead, outHeaderSize + 4096},
		{"read 1 MiB", opRead, outHeaderSize + maxData},
	} {
		b.Run(c.name, func(b *testing.B) {
			g, _ := boot(b, &files{serve: fixed})
			r := newReuse(g, c.op, c.room)
			if c.op == opRead {
				b.SetBytes(int64(c.room))
			}
			for b.Loop() {
				r.send()
				r.wait()
			}
		})
	}
}

// BenchmarkDepth is many requests at once.
func BenchmarkDepth(b *testing.B) {
	for _, c := range []struct {
		name        string
		op          opcode
		room, depth int
	}{
		{"leader by 16", opGetattr, 120, 16}, {"worker by 16", opFsync, outHeaderSize, 16},
		{"read 32 KiB by 4", opRead, outHeaderSize + 32<<10, 4}, {"read 128 KiB by 4", opRead, outHeaderSize + 128<<10, 4},
	} {
		b.Run(c.name, func(b *testing.B) {
			g, _ := boot(b, &files{serve: fixed})
			r := newReuse(g, c.op, c.room)
			if c.op == opRead {
				b.SetBytes(int64(c.room))
			}
			for range c.depth {
				r.send()
			}
			for b.Loop() {
				r.wait()
				r.send()
			}
			for range c.depth {
				r.wait()
			}
		})
	}
}
