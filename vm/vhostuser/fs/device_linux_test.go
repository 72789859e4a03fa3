package fs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm/vhostuser/vhosttest"
)

// files is a FileSystem that a test makes up.
type files struct {
	serve  func(op opcode, in, out [][]byte) int
	resets atomic.Int32
	within atomic.Int32 // calls of Serve under way
	broken atomic.Bool  // Reset ran beside a Serve
}

func (f *files) Serve(in, out [][]byte) int {
	f.within.Add(1)
	defer f.within.Add(-1)
	return f.serve(opcode(binary.LittleEndian.Uint32(in[0][4:])), in, out)
}

func (f *files) Reset() {
	f.resets.Add(1)
	if f.within.Load() != 0 {
		f.broken.Store(true)
	}
}

// echo answers with a header and the request's own body, as much as fits.
func echo(_ opcode, in, out [][]byte) int {
	body := bytes.Join(in, nil)
	id := body[8:16]
	body = body[inHeaderSize:]
	h := binary.LittleEndian.AppendUint32(nil, uint32(outHeaderSize+len(body)))
	h = append(append(append(h, 0, 0, 0, 0), id...), body...)
	n := 0
	for _, b := range out {
		n += copy(b, h[n:])
	}
	return n
}

// guest is the driver's side.
type guest struct {
	t      testing.TB
	f      *vhosttest.Frontend
	queues []*vhosttest.Queue
	next   uint64
	answer map[int][2]uint64 // address and length of the room for the answer, by queue<<16|head
}

const (
	memory   = 16 << 20
	ringSize = 1024
)

// boot starts a guest on fs with a high-priority and two request queues. What it returns ends the guest.
func boot(t testing.TB, fs *files) (*guest, func()) {
	front, back := vhosttest.Pair(t)
	served := make(chan error, 1)
	log := slog.New(slog.DiscardHandler)
	go func() { served <- Serve(context.Background(), back, fs, log) }()
	g := &guest{t: t, f: vhosttest.New(t, front, memory), answer: map[int][2]uint64{}}
	g.f.Start()
	for i := range 3 {
		q := g.f.NewQueue(i, ringSize)
		q.Start(0)
		g.queues = append(g.queues, q)
	}
	end := sync.OnceFunc(func() {
		g.f.Close()
		select {
		case err := <-served:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve does not end")
		}
		if fs.broken.Load() {
			t.Error("Reset ran while a request was answered")
		}
	})
	t.Cleanup(end)
	return g, end
}

// message is a FUSE request without what the device does not look at.
func message(op opcode, id uint64, body []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(inHeaderSize+len(body)))
	b = binary.LittleEndian.AppendUint32(b, uint32(op))
	b = binary.LittleEndian.AppendUint64(b, id)
	return append(append(b, make([]byte, inHeaderSize-len(b))...), body...)
}

// put lays b into the guest's memory and describes it in pieces of size.
func (g *guest) put(b []byte, size int) (ds []vhosttest.Desc) {
	if len(b) == 0 {
		return nil
	}
	addr := g.f.Alloc(len(b))
	copy(g.f.Bytes(addr, len(b)), b)
	for off := 0; off < len(b); off += size {
		ds = append(ds, vhosttest.Desc{Addr: addr + uint64(off), Len: uint32(min(size, len(b)-off))})
	}
	return ds
}

// offer sends a request with room for an answer and returns its head.
func (g *guest) offer(queue int, op opcode, body []byte, room int) int {
	g.next++
	ds := g.put(message(op, g.next, body), 4096)
	var at uint64
	if room > 0 {
		at = g.f.Alloc(room)
		for off := 0; off < room; off += 4096 {
			ds = append(ds, vhosttest.Desc{Addr: at + uint64(off), Len: uint32(min(4096, room-off)), Flags: vhosttest.Write})
		}
	}
	return g.send(queue, ds, at, room)
}

func (g *guest) send(queue int, ds []vhosttest.Desc, at uint64, room int) int {
	q := g.queues[queue]
	head, ok := q.Add(ds...)
	if !ok {
		g.t.Fatal("ring is full")
	}
	g.answer[queue<<16|head] = [2]uint64{at, uint64(room)}
	q.Publish()
	q.Kick(false)
	return head
}

// take waits for the next answer on a queue.
func (g *guest) take(queue int) (head int, answer []byte) {
	g.t.Helper()
	q := g.queues[queue]
	fail := time.AfterFunc(10*time.Second, q.Close)
	defer fail.Stop()
	for {
		if head, n, ok := q.Take(); ok {
			a := g.answer[queue<<16|head]
			if n > int(a[1]) {
				g.t.Fatalf("answer of %d bytes into room for %d", n, a[1])
			}
			if n == 0 {
				return head, nil
			}
			return head, bytes.Clone(g.f.Bytes(a[0], n))
		}
		if !q.Arm() && !q.Wait() {
			g.t.Fatal("no answer for 10 s")
		}
	}
}

// ask sends a request and returns the answer's error number and body.
func (g *guest) ask(queue int, op opcode, body []byte, room int) (int32, []byte) {
	g.t.Helper()
	head := g.offer(queue, op, body, room)
	got, b := g.take(queue)
	if got != head {
		g.t.Fatalf("answer to request %d, want %d", got, head)
	}
	return g.parse(b, g.next)
}

func (g *guest) parse(b []byte, id uint64) (int32, []byte) {
	g.t.Helper()
	if len(b) < outHeaderSize || binary.LittleEndian.Uint64(b[8:]) != id {
		g.t.Fatalf("answer %x to request %d", b[:min(len(b), 32)], id)
	}
	return int32(binary.LittleEndian.Uint32(b[4:])), b[outHeaderSize:]
}

const (
	opLookup  opcode = 1
	opGetattr opcode = 3
)

func TestEcho(t *testing.T) {
	for _, c := range []struct {
		name string
		op   opcode
		body int
		room int
	}{
		{"small", opGetattr, 16, 200},
		{"no body", opGetattr, 0, 100},
		{"name", opLookup, 4096, 8192},
		{"longest copy", opLookup, maxCopy - inHeaderSize, maxCopy + 100},
		{"small write", opWrite, 40 + 100, 200},
		{"write without payload", opWrite, 40, 200},
		{"short write", opWrite, 10, 200},
		{"big write", opWrite, 40 + maxData, maxSize},
		{"small read", opRead, 40, 100},
		{"big read", opRead, 40, outHeaderSize + maxData},
		{"small room", opLookup, 500, 17},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, _ := boot(t, &files{serve: echo})
			body := make([]byte, c.body)
			for i := range body {
				body[i] = byte(i * 7 >> 3)
			}
			for queue := 1; queue <= 2; queue++ {
				code, got := g.ask(queue, c.op, body, c.room)
				if want := body[:min(len(body), c.room-outHeaderSize)]; code != 0 || !bytes.Equal(got, want) {
					t.Errorf("queue %d: error %d, %d bytes; want %d bytes, the request's", queue, code, len(got), len(want))
				}
			}
		})
	}
}

// What a file system parses does not change while it does, and what it reads back of its own answer is what it wrote.
func TestStable(t *testing.T) {
	entered, changed := make(chan struct{}), make(chan struct{})
	var in, out [][]byte
	g, end := boot(t, &files{serve: func(_ opcode, i, o [][]byte) int {
		in, out = i, o
		entered <- struct{}{}
		<-changed
		return 0
	}})
	defer end()
	extended := make([]byte, 200)
	for _, c := range []struct {
		name           string
		op             opcode
		body           []byte
		stable, shared int // bytes of in
		room           bool
	}{
		{"lookup", opLookup, []byte("name\x00"), 45, 0, true},
		{"write", opWrite, make([]byte, 200), writeHeadSize, 160, true},
		{"write with extensions", opWrite, extended, 240, 0, true},
		{"read", opRead, make([]byte, 40), 80, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g.next++
			b := message(c.op, g.next, c.body)
			if c.name == "write with extensions" {
				b[36] = 1
			}
			ds := g.put(b, 4096)
			at := g.f.Alloc(100)
			g.send(1, append(ds, vhosttest.Desc{Addr: at, Len: 100, Flags: vhosttest.Write}), at, 100)
			<-entered
			for _, d := range ds {
				copy(g.f.Bytes(d.Addr, int(d.Len)), bytes.Repeat([]byte{0xee}, int(d.Len)))
			}
			mem := g.f.Bytes(at, 100)
			copy(mem, bytes.Repeat([]byte{0xee}, 100))
			all := bytes.Join(in, nil)
			if !bytes.Equal(in[0], b[:c.stable]) || len(all) != len(b) || bytes.Count(all, []byte{0xee}) != c.shared {
				t.Errorf("in has %d bytes before the guest's, %d of the guest's; want %d, %d", len(in[0]), bytes.Count(all, []byte{0xee}), c.stable, c.shared)
			}
			if own := bytes.Count(bytes.Join(out, nil), []byte{0xee}) == 0; own != c.room {
				t.Errorf("room for the answer is our own: %t, want %t", own, c.room)
			}
			changed <- struct{}{}
			if _, b := g.take(1); len(b) != outHeaderSize {
				t.Errorf("answer of %d bytes to a request that was given none", len(b))
			}
		})
	}
}

func TestNoAnswer(t *testing.T) {
	g, _ := boot(t, &files{serve: func(opcode, [][]byte, [][]byte) int { return 0 }})
	for _, c := range []struct {
		op   opcode
		room int
		want int
	}{
		{opForget, 0, 0}, {opBatchForget, 0, 0}, {opInterrupt, 0, 0}, {opForget, 100, 0}, {opGetattr, 0, 0}, {opGetattr, 8, 0},
		{opGetattr, 100, outHeaderSize}, {opRead, 100, outHeaderSize}, {opRead, 0, 0},
	} {
		for queue := range 3 {
			head := g.offer(queue, c.op, make([]byte, 40), c.room)
			got, b := g.take(queue)
			if got != head || len(b) != c.want {
				t.Errorf("request %d with room for %d: answer of %d bytes, want %d", c.op, c.room, len(b), c.want)
			}
			if c.want > 0 {
				if code, _ := g.parse(b, g.next); code != -int32(syscall.EIO) {
					t.Errorf("request %d: error %d", c.op, code)
				}
			}
		}
	}
}

// Nothing waits for a request that hangs, quick or big, on the queue where it does.
func TestOutOfOrder(t *testing.T) {
	for name, op := range map[string]opcode{"quick": opGetattr, "big": opFsync} {
		t.Run(name, func(t *testing.T) {
			hang := make(chan struct{})
			g, _ := boot(t, &files{serve: func(o opcode, in, out [][]byte) int {
				if o == op && in[0][inHeaderSize] == 1 {
					<-hang
				}
				return echo(o, in, out)
			}})
			var stuck []int
			for range maxBusy {
				stuck = append(stuck, g.offer(1, op, []byte{1}, 100))
			}
			for i := range 100 {
				if _, got := g.ask(1, opLookup, []byte{byte(i)}, 100); !bytes.Equal(got, []byte{byte(i)}) {
					t.Fatalf("answer %x", got)
				}
			}
			close(hang)
			for range stuck {
				g.take(1)
			}
		})
	}
}

// A guest that hangs more requests than are answered at once has to wait for one of them, and for no more.
func TestAllBusy(t *testing.T) {
	hang := make(chan struct{})
	var most atomic.Int32
	fs := &files{}
	fs.serve = func(o opcode, in, out [][]byte) int {
		most.Store(max(most.Load(), fs.within.Load()))
		if in[0][inHeaderSize] == 1 {
			<-hang
		}
		return echo(o, in, out)
	}
	g, _ := boot(t, fs)
	for range maxBusy + 10 {
		g.offer(1, opGetattr, []byte{1}, 100)
	}
	for fs.within.Load() < maxBusy+1 { // the leader too
		time.Sleep(time.Millisecond)
	}
	last := g.offer(1, opLookup, []byte{0}, 100)
	if _, got := g.ask(2, opLookup, []byte{2}, 100); got[0] != 2 {
		t.Errorf("other queue answers %x", got)
	}
	hang <- struct{}{} // one goes on, so the lead can change hands
	for range maxBusy + 9 {
		hang <- struct{}{}
	}
	seen := false
	for range maxBusy + 11 {
		head, _ := g.take(1)
		seen = seen || head == last
	}
	if !seen || most.Load() > maxBusy+2 {
		t.Errorf("last request answered: %t; %d at once on two queues, want at most %d", seen, most.Load(), maxBusy+2)
	}
}

func TestMany(t *testing.T) {
	g, _ := boot(t, &files{serve: func(o opcode, in, out [][]byte) int {
		if in[0][inHeaderSize]%7 == 0 {
			time.Sleep(2 * patience)
		}
		return echo(o, in, out)
	}})
	const rounds, many = 20, 40
	for round := range rounds {
		want := map[int][]byte{}
		for i := range many {
			op := []opcode{opGetattr, opFsync, opLookup}[i%3]
			body := fmt.Appendf([]byte{byte(i)}, "%d of %d", i, round)
			want[g.offer(1, op, body, 100)] = body
		}
		for range many {
			head, b := g.take(1)
			if body := want[head]; body == nil || !bytes.Equal(b[outHeaderSize:], body) {
				t.Fatalf("answer %q, want %q", b[outHeaderSize:], body)
			}
			delete(want, head)
		}
		g.recycle()
	}
}

// recycle frees the memory of requests that are answered.
func (g *guest) recycle() { g.f.Free(g.queues[2].Used + uint64(8*g.queues[2].Size) + 8) }

func TestReset(t *testing.T) {
	fs := &files{serve: echo}
	g, end := boot(t, fs)
	want := func(what string, n int32) {
		t.Helper()
		if got := fs.resets.Load(); got != n {
			t.Errorf("%s: reset %d times, want %d", what, got, n)
		}
	}
	want("new device", 0)
	g.ask(1, opInit, nil, 100)
	want("first mount", 0)
	g.ask(1, opGetattr, nil, 100)
	g.ask(1, opInit, nil, 100)
	want("mount without an unmount", 1)
	g.ask(1, opDestroy, nil, 100)
	want("unmount", 2)
	g.ask(1, opInit, nil, 100)
	want("second mount", 2)
	for i, q := range g.queues {
		base := q.Stop()
		if i == 0 {
			q.Start(base)
		}
	}
	want("pause", 2)
	g.queues[0].Stop()
	for i := range g.queues {
		g.queues[i] = g.f.NewQueue(i, ringSize)
		g.queues[i].Start(0)
	}
	want("new driver", 3)
	g.ask(2, opGetattr, nil, 100)
	end()
	want("end", 4)
	again, endAgain := boot(t, fs)
	again.ask(1, opInit, nil, 100)
	endAgain()
	want("plugged again", 5)
}

// An INIT waits for what is under way, and nothing of the new mount passes it.
func TestInitMidFlight(t *testing.T) {
	fs := &files{}
	fs.serve = func(o opcode, in, out [][]byte) int {
		if o == opFsync {
			time.Sleep(20 * time.Millisecond)
		}
		if o == opInit && fs.within.Load() != 1 {
			fs.broken.Store(true)
		}
		return echo(o, in, out)
	}
	g, _ := boot(t, fs)
	for range 10 {
		for range 8 {
			g.offer(1, opFsync, nil, 100)
		}
		g.offer(2, opInit, nil, 100)
		g.offer(2, opGetattr, nil, 100)
		for range 8 {
			g.take(1)
		}
		g.take(2)
		g.take(2)
		g.recycle()
	}
}

// A front end that stops, or goes away, in the middle of requests waits for their end; none is lost when it goes on.
func TestStopMidFlight(t *testing.T) {
	hang := make(chan struct{})
	fs := &files{serve: func(o opcode, in, out [][]byte) int {
		<-hang
		return echo(o, in, out)
	}}
	g, end := boot(t, fs)
	for i := range 8 {
		g.offer(1, []opcode{opGetattr, opFsync}[i%2], nil, 100)
	}
	for fs.within.Load() < 8 {
		time.Sleep(time.Millisecond)
	}
	time.AfterFunc(20*time.Millisecond, func() { close(hang) })
	base := g.queues[1].Stop()
	if base != 8 || fs.within.Load() != 0 {
		t.Errorf("stopped at %d with %d requests under way", base, fs.within.Load())
	}
	g.queues[1].Start(base)
	for range 8 {
		g.take(1)
	}
	g.ask(1, opGetattr, nil, 100)
	for range 8 {
		g.offer(1, opFsync, nil, 100)
	}
	end()
	if fs.within.Load() != 0 {
		t.Error("requests are under way after the end")
	}
}
