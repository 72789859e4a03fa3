package vhostuser

import (
	"encoding/binary"
	"log/slog"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// fuzzMemory is two regions of 4 KiB with a gap between them, of plain memory.
func fuzzMemory() *memory {
	m := &memory{}
	for _, guest := range []uint64{0x1000, 0x3000} {
		m.regions = append(m.regions, region{
			regionSpec{guest: guest, size: 0x1000, user: guest + 0x7f0000000000}, make([]byte, 0x1000),
		})
	}
	return m
}

// FuzzChain takes a ring whose table, available ring and indirect tables are the fuzzer's, and reads and writes every chain.
func FuzzChain(f *testing.F) {
	seed := make([]byte, 0x300)
	for i := range 8 {
		d := seed[16*i:]
		binary.LittleEndian.PutUint64(d, 0x3000+uint64(i)*64)
		binary.LittleEndian.PutUint32(d[8:], 64)
		binary.LittleEndian.PutUint16(d[12:], uint16(i%2*descWrite|(1-i%2)*descNext))
		binary.LittleEndian.PutUint16(d[14:], uint16(i+1))
	}
	f.Add(seed, uint16(4))
	binary.LittleEndian.PutUint64(seed, 0x1010)
	binary.LittleEndian.PutUint32(seed[8:], 0x70)
	binary.LittleEndian.PutUint16(seed[12:], descIndirect)
	f.Add(seed, uint16(1))
	f.Fuzz(func(t *testing.T, b []byte, avail uint16) {
		m := fuzzMemory()
		copy(m.regions[0].mapping, b)
		at, err := locate(m, ringAddr{desc: 0x7f0000001000, avail: 0x7f0000001100, used: 0x7f0000001200}, 16)
		if err != nil {
			t.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		q := &Queue{size: 16, walk: walker{mem: m, indirect: true}, ring: at, kick: r, call: &caller{}}
		at.availIdx.store(avail)
		var c Chain
		buf := make([]byte, 100)
		for range 100 {
			ok, err := q.Pop(&c)
			if !ok || err != nil {
				break
			}
			total := c.Readable()
			for n, got := 0, 0; ; got += n {
				if n, err = c.Read(buf); err != nil {
					if got != total {
						t.Fatalf("read %d of %d bytes", got, total)
					}
					break
				}
			}
			for room := c.Writable(); room > 0; room = c.Writable() {
				if n, _ := c.Write(buf); n != min(room, len(buf)) {
					t.Fatalf("wrote %d into %d bytes", n, room)
				}
			}
			q.Push(&c)
			q.Notify()
		}
	})
}

type idle struct{}

func (idle) Features() uint64   { return 0 }
func (idle) Config() []byte     { return make([]byte, 8) }
func (idle) Queues() int        { return 2 }
func (idle) Run(q *Queue) error { return q.Wait() }

// FuzzMessages gives a session a sequence of messages: each a request, a count of descriptors, a length, and the payload.
func FuzzMessages(f *testing.F) {
	add := func(ms ...[]byte) {
		var b []byte
		for _, m := range ms {
			b = append(b, m...)
		}
		f.Add(b)
	}
	msg := func(r request, fds byte, payload ...uint64) []byte {
		b := []byte{byte(r), fds, byte(8 * len(payload))}
		for _, v := range payload {
			b = binary.NativeEndian.AppendUint64(b, v)
		}
		return b
	}
	const user = 0x7f0000000000
	add(msg(setFeatures, 0, ringFeatures), msg(setMemTable, 1, 1, 0, 0x4000, user, 0), msg(setVringNum, 0, 16<<32),
		msg(setVringAddr, 0, 0, user, user+0x200, user+0x100, 0), msg(setVringKick, 1, 0), msg(setVringCall, 1, 0),
		msg(setVringEnable, 0, 1<<32), msg(setMemTable, 1, 1, 0, 0x4000, user, 0), msg(getVringBase, 0, 0))
	add(msg(getConfig, 0, 8<<32, 0), msg(getFeatures, 0), msg(getQueueNum, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		memfd, err := unix.MemfdCreate("fuzz", unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(memfd)
		unix.Ftruncate(memfd, 0x4000)
		s := newSession(idle{}, slog.New(slog.DiscardHandler))
		defer s.close()
		for range 50 {
			if len(b) < 3 {
				return
			}
			m := &message{request: request(b[0])}
			for range b[1] % 3 {
				if fd := fuzzFD(m.request, memfd); fd >= 0 {
					m.fds = append(m.fds, fd)
				}
			}
			n := min(int(b[2]), len(b)-3)
			m.payload, b = b[3:3+n], b[3+n:]
			s.answer(m)
		}
	})
}

func fuzzFD(r request, memfd int) int {
	var fd int
	var err error
	if r == setMemTable {
		fd, err = unix.FcntlInt(uintptr(memfd), unix.F_DUPFD_CLOEXEC, 0)
	} else {
		fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	}
	if err != nil {
		return -1
	}
	return fd
}
