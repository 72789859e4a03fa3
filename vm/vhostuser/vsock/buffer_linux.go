package vsock

import (
	"io"
	"math/bits"
	"sync"
)

const (
	bufferSize = 256 << 10 // what we tell the guest that we can buffer per stream: Linux's own default
	minBuffer  = 4 << 10
)

// buffer holds what the guest sent and nobody has read yet: a ring of bytes that has memory only while it holds something.
type buffer struct {
	b     []byte // its length is a power of two
	start int
	n     int
}

// pools has spare rings, by the logarithm of their size.
var pools [19]sync.Pool

// free is how much more the guest may send.
func (r *buffer) free() int { return bufferSize - r.n }

// fill appends n bytes of src, which has them; n is at most free.
func (r *buffer) fill(src io.Reader, n int) {
	r.grow(r.n + n)
	for n > 0 {
		end := (r.start + r.n) & (len(r.b) - 1)
		k, err := src.Read(r.b[end:min(end+n, len(r.b))])
		if err != nil {
			return
		}
		r.n += k
		n -= k
	}
}

// grow makes room for size bytes in all. The old ring is left to whoever holds a slice from peek.
func (r *buffer) grow(size int) {
	if size <= len(r.b) {
		return
	}
	class := bits.Len(uint(max(size, minBuffer) - 1))
	b, _ := pools[class].Get().(*[]byte)
	if b == nil {
		fresh := make([]byte, 1<<class)
		b = &fresh
	}
	n := copy(*b, r.peek())
	if n < r.n {
		copy((*b)[n:], r.b[:r.n-n])
	}
	r.b, r.start = *b, 0
}

// peek is the longest run of bytes at the front.
func (r *buffer) peek() []byte { return r.b[r.start:min(r.start+r.n, len(r.b))] }

// drop takes n bytes away at the front. No slice from peek may be in use any more.
func (r *buffer) drop(n int) {
	r.n -= n
	if r.n > 0 {
		r.start = (r.start + n) & (len(r.b) - 1)
		return
	}
	if r.b != nil {
		b := r.b
		pools[bits.Len(uint(len(b)-1))].Put(&b)
	}
	*r = buffer{}
}

// read moves bytes into p.
func (r *buffer) read(p []byte) int {
	n := 0
	for n < len(p) && r.n > 0 {
		k := copy(p[n:], r.peek())
		r.drop(k)
		n += k
	}
	return n
}
