package vhostuser

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// region is a mapped part of the guest's memory.
type region struct {
	regionSpec
	mapping []byte // the descriptor from 0 to offset+size
}

func (r *region) data() []byte { return r.mapping[r.offset:] }

// memory is the guest's memory under one memory table. It stays mapped while a holder (the session, every queue that was
// started on it) keeps it: release of the last one unmaps it.
type memory struct {
	regions []region
	holders atomic.Int32
}

// mapMemory maps every region from fds, in order, which stay the caller's. The caller is the first holder.
func mapMemory(specs []regionSpec, fds []int) (*memory, error) {
	if len(fds) != len(specs) {
		return nil, fmt.Errorf("map memory: %d regions with %d descriptors", len(specs), len(fds))
	}
	m := &memory{}
	m.holders.Store(1)
	for i, s := range specs {
		mapping, err := mapRegion(s, fds[i])
		if err != nil {
			m.release()
			return nil, fmt.Errorf("map memory region %d: %w", i, err)
		}
		m.regions = append(m.regions, region{s, mapping})
	}
	return m, nil
}

func mapRegion(s regionSpec, fd int) ([]byte, error) {
	end := s.offset + s.size
	if s.size == 0 || end < s.size || end > math.MaxInt64 || s.guest+s.size < s.guest || s.user+s.size < s.user {
		return nil, fmt.Errorf("bad region %+v", s)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat descriptor: %w", err)
	}
	if uint64(st.Size) < end { // beyond its end a mapping faults
		return nil, fmt.Errorf("descriptor has %d bytes, region ends at %d", st.Size, end)
	}
	return unix.Mmap(fd, 0, int(end), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

func (m *memory) hold() *memory {
	m.holders.Add(1)
	return m
}

func (m *memory) release() {
	if m.holders.Add(-1) > 0 {
		return
	}
	for _, r := range m.regions {
		unix.Munmap(r.mapping)
	}
	m.regions = nil
}

var errOutside = errors.New("address outside the guest's memory")

// guest appends the n bytes at guest-physical addr to segs: one slice per region that they cross.
func (m *memory) guest(segs [][]byte, addr, n uint64) ([][]byte, error) {
	for n > 0 {
		r := m.find(addr)
		if r == nil {
			return segs, errOutside
		}
		off := addr - r.guest
		k := min(n, r.size-off)
		segs = append(segs, r.data()[off:off+k:off+k])
		addr, n = addr+k, n-k
		if addr == 0 && n > 0 {
			return segs, errOutside
		}
	}
	return segs, nil
}

func (m *memory) find(addr uint64) *region {
	for i := range m.regions {
		if r := &m.regions[i]; addr >= r.guest && addr-r.guest < r.size {
			return r
		}
	}
	return nil
}

// user finds the n bytes at addr of the front end's address space: they start at off of mapping, which is page-aligned.
func (m *memory) user(addr, n uint64) (mapping []byte, off int, err error) {
	for i := range m.regions {
		r := &m.regions[i]
		if addr >= r.user && addr-r.user < r.size && n <= r.size-(addr-r.user) {
			return r.mapping, int(r.offset + addr - r.user), nil
		}
	}
	return nil, 0, errOutside
}
