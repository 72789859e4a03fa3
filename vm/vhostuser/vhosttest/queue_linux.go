package vhosttest

import (
	"encoding/binary"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Descriptor flags.
const (
	Next          = 1
	Write         = 2
	IndirectTable = 4
)

// Desc is a descriptor as it lies in a table.
type Desc struct {
	Addr  uint64
	Len   uint32
	Flags uint16
	Next  uint16
}

// Queue is a driver's half of a split ring. One goroutine at a time uses it, but for Wait.
type Queue struct {
	Size              int
	Desc, Avail, Used uint64 // guest-physical

	f        *Frontend
	index    int
	kick     *os.File
	call     *os.File
	free     []uint16 // heads of free descriptors
	chains   [][]uint16
	avail    uint16
	lastUsed uint16
	kicked   uint16
}

// NewQueue makes a ring in the guest's memory; Start hands it to the back end.
func (f *Frontend) NewQueue(index, size int) *Queue {
	q := &Queue{f: f, index: index, Size: size, chains: make([][]uint16, size)}
	q.Desc, q.Avail, q.Used = f.Alloc(16*size), f.Alloc(6+2*size), f.Alloc(8+8*size)
	for i := range size {
		q.free = append(q.free, uint16(i))
	}
	f.t.Cleanup(q.Close)
	return q
}

// Start sets the ring up from base and enables it.
func (q *Queue) Start(base int) {
	q.f.Send(8, state(q.index, q.Size))
	q.f.Send(10, state(q.index, base))
	b := state(q.index, 0)
	for _, v := range []uint64{user(q.Desc), user(q.Used), user(q.Avail), 0} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	q.f.Send(9, b)
	kick, call := q.event(&q.kick), q.event(&q.call)
	q.f.Send(12, le64(uint64(q.index)), kick)
	q.f.Send(13, le64(uint64(q.index)), call)
	q.f.Send(18, state(q.index, 1))
	q.f.Sync()
	q.Kick(true)
}

// event makes an eventfd, or takes the one that is there, and returns its descriptor for sending.
func (q *Queue) event(f **os.File) int {
	if *f == nil {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			q.f.t.Fatal(err)
		}
		*f = os.NewFile(uintptr(fd), "eventfd")
	}
	raw, err := (*f).SyscallConn()
	if err != nil {
		q.f.t.Fatal(err)
	}
	n := -1
	raw.Control(func(fd uintptr) { n = int(fd) })
	return n
}

// Stop stops the ring as QEMU does, and returns the index where the back end stands.
func (q *Queue) Stop() int {
	q.f.Send(18, state(q.index, 0))
	b, err := q.f.Ask(11, state(q.index, 0))
	if err != nil || len(b) != 8 {
		q.f.t.Fatalf("stop queue %d: %d bytes, %v", q.index, len(b), err)
	}
	return int(binary.LittleEndian.Uint32(b[4:]))
}

// Close ends Wait.
func (q *Queue) Close() {
	if q.kick != nil {
		q.kick.Close()
		q.call.Close()
	}
}

// Put writes a descriptor into a table.
func (f *Frontend) Put(table uint64, i int, d Desc) {
	b := f.Bytes(table+uint64(16*i), 16)
	binary.LittleEndian.PutUint64(b, d.Addr)
	binary.LittleEndian.PutUint32(b[8:], d.Len)
	binary.LittleEndian.PutUint16(b[12:], d.Flags)
	binary.LittleEndian.PutUint16(b[14:], d.Next)
}

// Add offers a chain of buffers, which say by Flags whether the device may write them. It returns its head, and false if
// the ring is full. Publish makes it visible.
func (q *Queue) Add(bufs ...Desc) (int, bool) {
	if len(q.free) < len(bufs) {
		return 0, false
	}
	ids := append([]uint16(nil), q.free[len(q.free)-len(bufs):]...)
	q.free = q.free[:len(q.free)-len(bufs)]
	for i, d := range bufs {
		if i+1 < len(bufs) {
			d.Flags |= Next
			d.Next = ids[i+1]
		}
		q.f.Put(q.Desc, int(ids[i]), d)
	}
	q.chains[ids[0]] = ids
	q.Offer(ids[0])
	return int(ids[0]), true
}

// Offer puts a head into the available ring, whatever it is.
func (q *Queue) Offer(head uint16) {
	binary.LittleEndian.PutUint16(q.f.Bytes(q.Avail+4+2*uint64(int(q.avail)%q.Size), 2), head)
	q.avail++
}

// Publish makes what was offered visible.
func (q *Queue) Publish() { q.SetAvail(q.avail) }

// SetAvail writes the available index, whatever it is.
func (q *Queue) SetAvail(v uint16) { atomic.StoreUint32(q.word(q.Avail), uint32(v)<<16) }

func (q *Queue) word(addr uint64) *uint32 {
	return (*uint32)(unsafe.Pointer(&q.f.Bytes(addr, 4)[0]))
}

// Kick kicks the device, if force is set or it wants to be.
func (q *Queue) Kick(force bool) bool {
	old := q.kicked
	q.kicked = q.avail
	want := atomic.LoadUint32(q.word(q.Used))&1 == 0
	if q.f.Features&EventIdx != 0 {
		event := uint16(atomic.LoadUint32(q.word(q.Used + 4 + 8*uint64(q.Size))))
		want = q.avail-event-1 < q.avail-old
	}
	if want || force {
		q.kick.Write(binary.NativeEndian.AppendUint64(nil, 1))
	}
	return want
}

// Take returns the next used chain's head and length.
func (q *Queue) Take() (head int, n int, ok bool) {
	if uint16(atomic.LoadUint32(q.word(q.Used))>>16) == q.lastUsed {
		return 0, 0, false
	}
	b := q.f.Bytes(q.Used+4+8*uint64(int(q.lastUsed)%q.Size), 8)
	head, n = int(binary.LittleEndian.Uint32(b)), int(binary.LittleEndian.Uint32(b[4:]))
	q.lastUsed++
	q.free = append(q.free, q.chains[head]...)
	q.chains[head] = nil
	return head, n, true
}

// Arm asks to be called at the next used chain, and returns true if one is there already.
func (q *Queue) Arm() bool {
	binary.LittleEndian.PutUint16(q.f.Bytes(q.Avail+4+2*uint64(q.Size), 2), q.lastUsed)
	atomic.AddUint32(q.word(q.Avail), 0) // a full barrier
	return uint16(atomic.LoadUint32(q.word(q.Used))>>16) != q.lastUsed
}

// Wait blocks until the device calls. It returns false after Close.
func (q *Queue) Wait() bool {
	var b [8]byte
	_, err := q.call.Read(b[:])
	return err == nil
}
