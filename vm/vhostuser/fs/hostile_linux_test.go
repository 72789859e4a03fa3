package fs

import (
	"bytes"
	"encoding/binary"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/coracle-engine/coracle/vm/vhostuser"
	"github.com/coracle-engine/coracle/vm/vhostuser/vhosttest"
)

// What no honest driver sends gets an error or nothing, never reaches the file system, and the queue goes on.
func TestHostile(t *testing.T) {
	const w = vhosttest.Write
	for _, c := range []struct {
		name    string
		op      opcode
		out, in uint32 // bytes for us to read and to write
		answer  int
	}{
		{"nothing", 0, 0, 0, 0},
		{"room alone", 0, 0, 100, 0},
		{"cut header", opGetattr, inHeaderSize - 1, 100, 0},
		{"long request", opLookup, maxCopy + 1, 100, outHeaderSize},
		{"long request without room", opLookup, maxCopy + 1, 0, 0},
		{"long write", opWrite, maxSize + 1, 100, outHeaderSize},
		{"long room", opGetattr, 100, maxSize + 1, outHeaderSize},
		{"long room for a read", opRead, 80, maxSize + 1, outHeaderSize},
		{"long forget", opForget, maxSize, 100, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var touched atomic.Bool
			g, _ := boot(t, &files{serve: func(o opcode, in, out [][]byte) int {
				if o == c.op {
					touched.Store(true)
				}
				return echo(o, in, out)
			}})
			at := g.f.Alloc(maxSize + 1)
			copy(g.f.Bytes(at, inHeaderSize), message(c.op, 77, nil))
			ds := []vhosttest.Desc{{Addr: at, Len: c.out}, {Addr: at, Len: c.in, Flags: w}}
			want := g.send(1, ds, at, int(c.in))
			head, b := g.take(1)
			if head != want || len(b) != c.answer || touched.Load() {
				t.Errorf("answer of %d bytes, want %d; the file system was asked: %t", len(b), c.answer, touched.Load())
			}
			if c.answer > 0 {
				if code, _ := g.parse(b, 77); code != -int32(syscall.EIO) {
					t.Errorf("error %d", code)
				}
			}
			if code, _ := g.ask(1, opInit, nil, 100); code != 0 {
				t.Errorf("the queue answers error %d", code)
			}
		})
	}
}

// The same memory many times over is no way to make us hold more of our own.
func TestHostileRepeats(t *testing.T) {
	g, _ := boot(t, &files{serve: echo})
	const size = 8 << 20
	at := g.f.Alloc(size)
	copy(g.f.Bytes(at, inHeaderSize), message(opLookup, 1, nil))
	var ds []vhosttest.Desc
	for range 200 {
		ds = append(ds, vhosttest.Desc{Addr: at, Len: size})
	}
	g.send(1, append(ds, vhosttest.Desc{Addr: at, Len: size, Flags: vhosttest.Write}), at, size)
	if _, b := g.take(1); len(b) != outHeaderSize {
		t.Errorf("answer of %d bytes", len(b))
	}
}

// pieces cuts b at the fuzzer's lengths.
func pieces(b, cuts []byte) (segs [][]byte) {
	for i := 0; len(b) > 0; i++ {
		n := len(b)
		if i < len(cuts) {
			n = min(n, int(cuts[i]))
		}
		segs = append(segs, b[:n:n])
		b = b[n:]
	}
	return segs
}

// FuzzSplit gives the device a request that is cut at any place, and checks what a file system would see of it.
func FuzzSplit(f *testing.F) {
	f.Add(message(opLookup, 1, []byte("name\x00")), []byte{40}, uint32(144), []byte{16}, uint16(100))
	f.Add(message(opWrite, 2, make([]byte, 140)), []byte{40, 40, 50}, uint32(24), []byte{}, uint16(24))
	f.Add(message(opRead, 3, make([]byte, 40)), []byte{1, 2, 3}, uint32(5000), []byte{16, 255}, uint16(5000))
	f.Add(message(opForget, 4, make([]byte, 8)), []byte{0, 48}, uint32(0), []byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, b, cuts []byte, room uint32, roomCuts []byte, answer uint16) {
		space := make([]byte, room%(maxSize+2))
		r := requests.Get().(*request)
		defer requests.Put(r)
		r.chain = *vhostuser.NewChain(pieces(b, cuts), pieces(space, roomCuts))
		if err := r.split(); err != nil {
			r.fail()
			if !bytes.Equal(space[min(len(space), outHeaderSize):], make([]byte, max(0, len(space)-outHeaderSize))) {
				t.Fatal("a refusal is longer than a header")
			}
			return
		}
		if in := bytes.Join(r.in, nil); !bytes.Equal(in, b) {
			t.Fatalf("request of %d bytes became one of %d", len(b), len(in))
		}
		if len(bytes.Join(r.out, nil)) != len(space) {
			t.Fatalf("room for %d bytes became room for %d", len(space), len(bytes.Join(r.out, nil)))
		}
		if op := binary.LittleEndian.Uint32(b[4:]); uint32(r.op) != op || len(r.in[0]) < min(len(b), writeHeadSize) {
			t.Fatalf("request %d became %d with %d bytes together", op, r.op, len(r.in[0]))
		}
		r.big()
		n := min(int(answer), len(space))
		for _, o := range r.out {
			for i := range o {
				o[i] = 0xaa
			}
		}
		r.finish(n)
		if n > 0 && bytes.Count(space[:n], []byte{0xaa}) != n {
			t.Fatalf("answer of %d bytes did not arrive", n)
		}
	})
}
