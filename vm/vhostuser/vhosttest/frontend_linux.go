package vhosttest

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The guest's memory: two regions of one descriptor, the second far above, as a machine with more than 3 GiB has them.
const (
	LowGuest  = 0x10_0000
	HighGuest = 0x1_0000_0000
	lowUser   = 0x7f00_0000_0000
	highUser  = 0x7f80_0000_0000
)

// Feature bits that a driver may take.
const (
	Indirect = 1 << 28
	EventIdx = 1 << 29
	Protocol = 1 << 30
	Version1 = 1 << 32
)

// Frontend is one connection to a back end, and the memory shared over it.
type Frontend struct {
	Features uint64 // what the driver takes of the offered features

	t    testing.TB
	conn *net.UnixConn
	fd   int
	mem  []byte // low half, high half
	free int    // of mem, the first unused byte
}

// Pair returns the two ends of a unix socket.
func Pair(t testing.TB) (front, back *net.UnixConn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *net.UnixConn {
		f := os.NewFile(uintptr(fd), "socketpair")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		return c.(*net.UnixConn)
	}
	return conn(fds[0]), conn(fds[1])
}

// New does what QEMU does before the guest's driver starts, with size bytes of memory. Close the front end to disconnect;
// the end of the test does it too.
func New(t testing.TB, conn *net.UnixConn, size int) *Frontend {
	fd, err := unix.MemfdCreate("guest", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(fd, int64(size))
	}
	if err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	f := &Frontend{Features: Indirect | EventIdx | Protocol | Version1, t: t, conn: conn, fd: fd, mem: mem}
	t.Cleanup(func() {
		f.Close()
		unix.Munmap(mem)
		unix.Close(fd)
	})
	f.U64(1)
	f.Send(16, le64(f.U64(15)&(1|1<<9)))
	f.U64(17)
	f.Send(3, nil)
	return f
}

// Close disconnects.
func (f *Frontend) Close() { f.conn.Close() }

// Start does what QEMU does when the driver is ready, up to the rings.
func (f *Frontend) Start() {
	f.Send(2, le64(f.Features))
	f.ShareMemory()
}

// ShareMemory sends the memory table.
func (f *Frontend) ShareMemory() {
	half := uint64(len(f.mem) / 2)
	b := binary.LittleEndian.AppendUint64(nil, 2)
	for _, v := range []uint64{LowGuest, half, lowUser, 0, HighGuest, half, highUser, half} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	f.Send(5, b, f.fd, f.fd)
}

// Send sends a message without a reply.
func (f *Frontend) Send(request uint32, payload []byte, fds ...int) {
	f.t.Helper()
	if err := f.send(request, payload, fds...); err != nil {
		f.t.Fatalf("send message %d: %v", request, err)
	}
}

func (f *Frontend) send(request uint32, payload []byte, fds ...int) error {
	b := binary.LittleEndian.AppendUint32(nil, request)
	b = binary.LittleEndian.AppendUint32(b, 1)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err := f.conn.WriteMsgUnix(append(b, payload...), oob, nil)
	return err
}

// Ask sends a message and returns its reply.
func (f *Frontend) Ask(request uint32, payload []byte) ([]byte, error) {
	if err := f.send(request, payload); err != nil {
		return nil, err
	}
	var h [12]byte
	if _, err := io.ReadFull(f.conn, h[:]); err != nil {
		return nil, err
	}
	if got, flags := binary.LittleEndian.Uint32(h[:]), binary.LittleEndian.Uint32(h[4:]); got != request || flags != 5 {
		return nil, fmt.Errorf("reply %d, flags %d, to request %d", got, flags, request)
	}
	b := make([]byte, binary.LittleEndian.Uint32(h[8:]))
	_, err := io.ReadFull(f.conn, b)
	return b, err
}

// U64 asks for a number.
func (f *Frontend) U64(request uint32) uint64 {
	f.t.Helper()
	b, err := f.Ask(request, nil)
	if err != nil || len(b) != 8 {
		f.t.Fatalf("ask %d: %d bytes, %v", request, len(b), err)
	}
	return binary.LittleEndian.Uint64(b)
}

// Sync returns when the back end has handled all messages so far.
func (f *Frontend) Sync() { f.U64(1) }

// Alloc takes n bytes of the guest's memory, zeroed, and returns their guest-physical address. They do not cross halves.
func (f *Frontend) Alloc(n int) uint64 {
	start := (f.free + 63) &^ 63
	if half := len(f.mem) / 2; start < half && start+n > half {
		start = half
	}
	if start+n > len(f.mem) {
		f.t.Fatalf("guest has no memory for %d bytes", n)
	}
	f.free = start + n
	if half := len(f.mem) / 2; start >= half {
		return HighGuest + uint64(start-half)
	}
	return LowGuest + uint64(start)
}

// Free takes back all that Alloc gave from addr on.
func (f *Frontend) Free(addr uint64) { f.free = f.offset(addr) }

// Bytes is the guest's memory at a guest-physical address from Alloc.
func (f *Frontend) Bytes(addr uint64, n int) []byte {
	off := f.offset(addr)
	return f.mem[off : off+n : off+n]
}

func (f *Frontend) offset(addr uint64) int {
	if addr >= HighGuest {
		return int(addr-HighGuest) + len(f.mem)/2
	}
	return int(addr - LowGuest)
}

// user turns a guest-physical address into the front end's own.
func user(addr uint64) uint64 {
	if addr >= HighGuest {
		return addr - HighGuest + highUser
	}
	return addr - LowGuest + lowUser
}

func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func state(index, num int) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, uint32(index)), uint32(num))
}
