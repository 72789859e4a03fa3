package vhostuser_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm/vhostuser"
	"github.com/coracle-engine/coracle/vm/vhostuser/vhosttest"
)

// echo answers each request with its own bytes, as many as fit.
type echo struct {
	mu     sync.Mutex
	fresh  []bool
	ended  chan error
	hungry bool // takes requests and never gives them back
}

func (*echo) Features() uint64 { return 0 }
func (*echo) Config() []byte   { return []byte("configuration") }
func (*echo) Queues() int      { return 2 }

func (e *echo) Run(q *vhostuser.Queue) error {
	e.mu.Lock()
	e.fresh = append(e.fresh, q.Fresh())
	e.mu.Unlock()
	err := e.work(q)
	if !errors.Is(err, vhostuser.ErrStopped) {
		e.ended <- err
	}
	return err
}

func (e *echo) work(q *vhostuser.Queue) error {
	var c vhostuser.Chain
	for {
		q.DisableKicks()
		for {
			ok, err := q.Pop(&c)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if e.hungry {
				continue
			}
			b := make([]byte, c.Readable())
			c.Read(b)
			c.Write(b[:min(len(b), c.Writable())])
			q.Push(&c)
		}
		q.Notify()
		if q.EnableKicks() {
			continue
		}
		if err := q.Wait(); err != nil {
			return err
		}
	}
}

// serve runs dev behind a front end with features.
func serve(t testing.TB, dev vhostuser.Device) *vhosttest.Frontend {
	front, back := vhosttest.Pair(t)
	done := make(chan error, 1)
	log := slog.New(slog.DiscardHandler)
	go func() { done <- vhostuser.Serve(context.Background(), back, dev, log) }()
	t.Cleanup(func() {
		front.Close()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve: %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Serve does not end")
		}
	})
	return vhosttest.New(t, front, 1<<20)
}

// roundTrip sends msg scattered over descriptors of 1, 2, 3… bytes and returns the answer.
func roundTrip(t *testing.T, f *vhosttest.Frontend, q *vhosttest.Queue, msg string, indirect bool) string {
	t.Helper()
	var bufs []vhosttest.Desc
	for i, rest := 1, msg; rest != ""; i++ {
		n := min(i, len(rest))
		a := f.Alloc(n)
		copy(f.Bytes(a, n), rest)
		bufs, rest = append(bufs, vhosttest.Desc{Addr: a, Len: uint32(n)}), rest[n:]
	}
	first := len(bufs)
	for i := range 3 {
		n := (len(msg) + 2) / 3
		bufs = append(bufs, vhosttest.Desc{Addr: f.Alloc(n), Len: uint32(n), Flags: vhosttest.Write})
		_ = i
	}
	offer := bufs
	if indirect {
		table := f.Alloc(16 * len(bufs))
		for i, d := range bufs {
			if i+1 < len(bufs) {
				d.Flags |= vhosttest.Next
				d.Next = uint16(i + 1)
			}
			f.Put(table, i, d)
		}
		offer = []vhosttest.Desc{{Addr: table, Len: uint32(16 * len(bufs)), Flags: vhosttest.IndirectTable}}
	}
	head, ok := q.Add(offer...)
	if !ok {
		t.Fatal("ring is full")
	}
	q.Publish()
	q.Kick(false)
	got, n := take(t, q)
	if got != head || n != len(msg) {
		t.Fatalf("used chain %d with %d bytes, want %d with %d", got, n, head, len(msg))
	}
	var b []byte
	for _, d := range bufs[first:] {
		b = append(b, f.Bytes(d.Addr, int(d.Len))...)
	}
	return string(b[:n])
}

func take(t *testing.T, q *vhosttest.Queue) (head, n int) {
	t.Helper()
	for {
		if head, n, ok := q.Take(); ok {
			return head, n
		}
		if !q.Arm() && !q.Wait() {
			t.Fatal("front end closed")
		}
	}
}

func TestEcho(t *testing.T) {
	features := map[string]uint64{
		"all":      vhosttest.Version1 | vhosttest.Protocol | vhosttest.EventIdx | vhosttest.Indirect,
		"no event": vhosttest.Version1 | vhosttest.Protocol | vhosttest.Indirect,
	}
	for name, v := range features {
		for _, indirect := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				f := serve(t, &echo{})
				f.Features = v
				f.Start()
				q := f.NewQueue(1, 64)
				q.Start(0)
				for i := range 300 { // more than once round the ring
					msg := strings.Repeat("x", i%40) + "the end"
					if got := roundTrip(t, f, q, msg, indirect); got != msg {
						t.Fatalf("got %q, want %q", got, msg)
					}
				}
			})
		}
	}
}

func TestConfig(t *testing.T) {
	f := serve(t, &echo{})
	ask := func(off, size uint32) []byte {
		b := binary.LittleEndian.AppendUint32(nil, off)
		b = binary.LittleEndian.AppendUint32(b, size)
		b, err := f.Ask(24, append(b, make([]byte, 4+size)...))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if got := ask(3, 6); len(got) != 18 || string(got[12:]) != "figura" {
		t.Errorf("configuration at 3: %q", got)
	}
	if got := ask(10, 9); len(got) != 0 {
		t.Errorf("configuration beyond its end: %q", got)
	}
}

func TestPauseKeepsTheRing(t *testing.T) {
	dev := &echo{}
	f := serve(t, dev)
	f.Start()
	q := f.NewQueue(0, 16)
	q.Start(0)
	for i := range 20 {
		roundTrip(t, f, q, "before", false)
		switch i % 4 {
		case 1:
			f.ShareMemory()
		case 3:
			base := q.Stop()
			if base != i+1 {
				t.Fatalf("stopped at %d after %d requests", base, i+1)
			}
			q.Start(base)
		}
	}
	base := q.Stop()
	fresh := f.NewQueue(0, 16)
	fresh.Start(0)
	roundTrip(t, f, fresh, "after", false)
	dev.mu.Lock()
	defer dev.mu.Unlock()
	for i, v := range dev.fresh {
		if want := i == 0 || i == len(dev.fresh)-1; v != want {
			t.Errorf("start %d of %d: fresh is %t", i, len(dev.fresh), v)
		}
	}
	if base != 20 || len(dev.fresh) != 12 {
		t.Errorf("stopped at %d, started %d times", base, len(dev.fresh))
	}
}

// A guest that breaks the rules loses its queue, with a reason, and nothing else.
func TestHostileRing(t *testing.T) {
	const w, next, ind = vhosttest.Write, vhosttest.Next, vhosttest.IndirectTable
	low := uint64(vhosttest.LowGuest)
	type D = vhosttest.Desc
	table := func(f *vhosttest.Frontend, ds ...D) D {
		a := f.Alloc(16 * len(ds))
		for i, d := range ds {
			f.Put(a, i, d)
		}
		return D{Addr: a, Len: uint32(16 * len(ds)), Flags: ind}
	}
	tests := []struct {
		name string
		do   func(f *vhosttest.Frontend, q *vhosttest.Queue)
		want string
	}{
		{"address below", func(f *vhosttest.Frontend, q *vhosttest.Queue) { q.Add(D{Addr: 0, Len: 1}) }, "outside"},
		{"address in the gap", func(f *vhosttest.Frontend, q *vhosttest.Queue) { q.Add(D{Addr: low + 1<<19 - 1, Len: 2}) }, "outside"},
		{"address wraps", func(f *vhosttest.Frontend, q *vhosttest.Queue) { q.Add(D{Addr: ^uint64(0), Len: 16}) }, "outside"},
		{"length", func(f *vhosttest.Frontend, q *vhosttest.Queue) { q.Add(D{Addr: low, Len: ^uint32(0)}) }, "outside"},
		{"head", func(f *vhosttest.Frontend, q *vhosttest.Queue) { q.Offer(16) }, "outside its table"},
		{"next", func(f *vhosttest.Frontend, q *vhosttest.Queue) {
			f.Put(q.Desc, 0, D{Addr: low, Len: 1, Flags: next, Next: 999})
			q.Offer(0)
		}, "outside its table"},
		{"loop", func(f *vhosttest.Frontend, q *vhosttest.Queue) {
			f.Put(q.Desc, 0, D{Addr: low, Len: 1, Flags: next, Next: 1})
			f.Put(q.Desc, 1, D{Addr: low, Len: 0, Flags: next, Next: 0})
			q.Offer(0)
		}, "loop"},
		{"loop in a table", func(f *vhosttest.Frontend, q *vhosttest.Queue) {
			q.Add(table(f, D{Addr: low, Len: 1, Flags: next, Next: 0}))
		}, "loop"},
		{"readable after writable", func(f *vhosttest.Frontend, q *vhosttest.Queue) {
			q.Add(D{Addr: low, Len: 1, Flags: w}, D{Addr: low, Len: 1})
		}, "after a writable"},
		{"table in a table", func(f *vhosttest.Frontend, q *vhosttest.Queue) {
			q.Add(table(f, table(f, D{Addr: low, Len: 1})))
		}, "bad indirect"},
		{"table and next", func(f *vhosttest.Frontend, q *vhosttest.Queue) {
			q.Add(table(f, D{Addr: low, Len: 1}), D{Addr: low, Len: 1})
		}, "bad indirect"},
		{"table of no length", func(f *vhosttest.Frontend, q *vhosttest.Queue) { q.Add(D{Addr: low, Flags: ind}) }, "bad indirect"},
		{"table of odd length", func(f *vhosttest.Frontend, q *vhosttest.Queue) { q.Add(D{Addr: low, Len: 17, Flags: ind}) }, "bad indirect"},
		{"table too long", func(f *vhosttest.Frontend, q *vhosttest.Queue) { q.Add(D{Addr: low, Len: 1 << 20, Flags: ind}) }, "bad indirect"},
		{"table outside", func(f *vhosttest.Frontend, q *vhosttest.Queue) { q.Add(D{Addr: 16, Len: 16, Flags: ind}) }, "outside"},
		{"available index jumps", func(f *vhosttest.Frontend, q *vhosttest.Queue) { q.SetAvail(17); q.Kick(true) }, "jumps"},
		{"available index goes back", func(f *vhosttest.Frontend, q *vhosttest.Queue) { q.SetAvail(0xffff); q.Kick(true) }, "jumps"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dev := &echo{ended: make(chan error, 2)}
			f := serve(t, dev)
			f.Start()
			bad, good := f.NewQueue(0, 16), f.NewQueue(1, 64)
			bad.Start(0)
			good.Start(0)
			tt.do(f, bad)
			if !strings.Contains(tt.name, "index") {
				bad.Publish()
				bad.Kick(true)
			}
			select {
			case err := <-dev.ended:
				if !strings.Contains(err.Error(), tt.want) {
					t.Errorf("queue ended with %q, want %q", err, tt.want)
				}
			case <-time.After(5 * time.Second):
				t.Fatal("queue goes on")
			}
			if got := roundTrip(t, f, good, "still here", false); got != "still here" {
				t.Errorf("other queue answers %q", got)
			}
			bad.Stop() // and set up anew it works
			again := f.NewQueue(0, 64)
			again.Start(0)
			roundTrip(t, f, again, "again", false)
		})
	}
}

func TestHoardedRequestsEndTheQueue(t *testing.T) {
	dev := &echo{ended: make(chan error, 1), hungry: true}
	f := serve(t, dev)
	f.Start()
	q := f.NewQueue(0, 16)
	q.Start(0)
	for range 2 {
		for range 16 {
			q.Offer(0)
		}
		q.Publish()
		q.Kick(true)
		f.Sync()
	}
	select {
	case err := <-dev.ended:
		if !strings.Contains(err.Error(), "more requests") && !strings.Contains(err.Error(), "jumps") {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("guest can have more requests open than its ring holds")
	}
}

func TestBadRingAddresses(t *testing.T) {
	for name, addr := range map[string]uint64{"nowhere": 0x1000, "at the end": vhosttest.LowGuest + 1<<19 - 16, "odd": vhosttest.LowGuest + 8} {
		t.Run(name, func(t *testing.T) {
			f := serve(t, &echo{})
			f.Start()
			q := f.NewQueue(0, 16)
			q.Desc = addr
			q.Start(0)
			f.Sync() // the session lives on
			if base := q.Stop(); base != 0 {
				t.Errorf("a ring that cannot run stands at %d", base)
			}
		})
	}
}

// What a broken front end sends ends its session with an error, and never more.
func TestBadMessages(t *testing.T) {
	u32 := func(vs ...uint32) (b []byte) {
		for _, v := range vs {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		return b
	}
	devnull, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer devnull.Close()
	table := bytes.Join([][]byte{u32(1, 0), make([]byte, 8), u32(4096, 0), make([]byte, 16)}, nil)
	tests := []struct {
		name    string
		request uint32
		payload []byte
		file    bool
		want    string
	}{
		{"unknown", 99, nil, false, "unknown"},
		{"features not offered", 2, u32(1, 0), false, "not offered"},
		{"protocol features not offered", 16, u32(2, 0), false, "not offered"},
		{"short features", 2, u32(1), false, "8 bytes"},
		{"memory without descriptors", 5, table, false, "0 descriptors"},
		{"memory in no file", 5, table, true, "has 0 bytes"},
		{"memory of 9 regions", 5, append(u32(9, 0), make([]byte, 9*32)...), false, "bad memory table"},
		{"memory cut short", 5, table[:20], false, "bad memory table"},
		{"queue 2", 8, u32(2, 16), false, "no queue"},
		{"queue size", 8, u32(0, 17), false, "queue size"},
		{"base", 10, u32(0, 1<<16), false, "bad index"},
		{"address cut short", 9, u32(0), false, "40 bytes"},
		{"kick without descriptor", 12, u32(0, 0), false, "without"},
		{"kick by polling", 12, u32(1<<8, 0), false, "polling"},
		{"call without descriptor", 13, u32(1, 0), false, "without"},
		{"configuration", 24, u32(0), false, "configuration"},
		{"too long", 1, make([]byte, 5000), false, "header"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			front, back := vhosttest.Pair(t)
			defer front.Close()
			done := make(chan error, 1)
			go func() {
				done <- vhostuser.Serve(context.Background(), back, &echo{}, slog.New(slog.DiscardHandler))
			}()
			f := vhosttest.New(t, front, 1<<16)
			if tt.file {
				f.Send(tt.request, tt.payload, int(devnull.Fd()))
			} else {
				f.Send(tt.request, tt.payload)
			}
			select {
			case err := <-done:
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("Serve: %v, want %q", err, tt.want)
				}
			case <-time.After(5 * time.Second):
				t.Error("Serve goes on")
			}
		})
	}
}
