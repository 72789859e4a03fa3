package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// vring is what the front end has said of one ring. It runs once everything is known and the ring is enabled.
type vring struct {
	index   int
	size    uint16
	addr    ringAddr
	base    uint16 // the available index to start from
	resumed bool   // base is where the ring stopped last, in the same place
	enabled bool
	broken  bool // could not be started; waits for the front end to set it anew
	kick    *os.File
	call    caller
	errs    caller
	q       *Queue // nil while stopped
	mem     *memory
	done    chan struct{} // closed when the device has let go of q
}

// ringOf finds the ring that a message means.
func (s *session) ringOf(index uint32) (*vring, error) {
	if uint64(index) >= uint64(len(s.rings)) {
		return nil, fmt.Errorf("no queue %d", index)
	}
	return s.rings[index], nil
}

// state finds the ring and the number of a vring state message.
func (s *session) state(m *message) (*vring, uint32, error) {
	index, num, err := decodeState(m.payload)
	if err != nil {
		return nil, 0, err
	}
	r, err := s.ringOf(index)
	return r, num, err
}

// settle starts or stops a ring as the front end's words have it by now.
func (s *session) settle(r *vring) {
	want := r.kick != nil && r.size != 0 && r.addr != (ringAddr{}) && s.mem != nil && !r.broken &&
		(r.enabled || s.features&featureProtocol == 0)
	switch {
	case !want:
		r.stop()
	case r.q == nil:
		if err := s.start(r); err != nil {
			r.broken = true
			r.errs.signal()
			s.log.Warn("cannot start a queue of the guest", "queue", r.index, "err", err)
		}
	}
}

func (s *session) start(r *vring) error {
	if s.features&featureVersion1 == 0 {
		return errors.New("driver is older than virtio 1.0")
	}
	at, err := locate(s.mem, r.addr, r.size)
	if err != nil {
		return err
	}
	r.mem = s.mem.hold()
	used := uint16(atomic.LoadUint32(at.usedWord) >> 16)
	q := &Queue{
		index: r.index, size: r.size, fresh: !r.resumed, event: s.features&featureEventIdx != 0,
		walk: walker{mem: r.mem, indirect: s.features&featureIndirect != 0}, ring: at,
		next: r.base, avail: r.base, used: used, signalled: used, first: true,
		kick: r.kick, call: &r.call,
	}
	r.kick.SetReadDeadline(time.Time{})
	done := make(chan struct{})
	r.q, r.done = q, done
	go func() {
		defer close(done)
		if err := s.dev.Run(q); err != nil && !errors.Is(err, ErrStopped) {
			r.errs.signal()
			s.log.Warn("queue of the guest is broken", "queue", q.index, "err", err)
		}
	}()
	return nil
}

// stop ends the queue, waits for the device to let go of it, and remembers where it stood.
func (r *vring) stop() {
	if r.q == nil {
		return
	}
	r.q.stop()
	<-r.done
	r.q.Notify() // of what the device pushed last
	r.base, r.resumed = r.q.next, r.q.failed() == ErrStopped
	r.mem.release()
	r.q, r.mem = nil, nil
}

func (r *vring) close() {
	r.setKick(nil)
	r.call.set(nil)
	r.errs.set(nil)
}

// setKick is for a stopped ring.
func (r *vring) setKick(f *os.File) {
	if r.kick != nil {
		r.kick.Close()
	}
	r.kick = f
}

func (s *session) setRingSize(m *message) ([]byte, error) {
	r, num, err := s.state(m)
	if err != nil {
		return nil, err
	}
	if num == 0 || num > maxQueueSize || num&(num-1) != 0 {
		return nil, fmt.Errorf("bad queue size %d", num)
	}
	r.stop()
	r.size, r.broken = uint16(num), false
	return nil, nil
}

func (s *session) setRingAddr(m *message) ([]byte, error) {
	index, addr, err := decodeAddr(m.payload)
	if err != nil {
		return nil, err
	}
	r, err := s.ringOf(index)
	if err != nil {
		return nil, err
	}
	if addr != r.addr {
		r.stop()
		r.addr, r.resumed, r.broken = addr, false, false
	}
	s.settle(r)
	return nil, nil
}

func (s *session) setRingBase(m *message) ([]byte, error) {
	r, num, err := s.state(m)
	if err != nil {
		return nil, err
	}
	if num > 0xffff {
		return nil, fmt.Errorf("bad index %d", num)
	}
	r.stop()
	r.resumed = r.resumed && r.base == uint16(num)
	r.base = uint16(num)
	return nil, nil
}

// stopRing answers GET_VRING_BASE: it stops the ring until the next kick descriptor, and says where it stands.
func (s *session) stopRing(m *message) ([]byte, error) {
	r, _, err := s.state(m)
	if err != nil {
		return nil, err
	}
	r.stop()
	r.setKick(nil)
	r.broken = false
	b := binary.NativeEndian.AppendUint32(nil, uint32(r.index))
	return binary.NativeEndian.AppendUint32(b, uint32(r.base)), nil
}

func (s *session) enableRing(m *message) ([]byte, error) {
	r, num, err := s.state(m)
	if err != nil {
		return nil, err
	}
	r.enabled = num != 0
	s.settle(r)
	return nil, nil
}

// event takes the ring and the descriptor, nil for none, of a kick, call or error message.
func (s *session) event(m *message, name string) (*vring, *os.File, error) {
	v, err := decodeU64(m.payload)
	if err != nil {
		return nil, nil, err
	}
	r, err := s.ringOf(uint32(v & 0xff))
	if err != nil {
		return nil, nil, err
	}
	fd := -1
	if v&flagNoFD == 0 {
		if fd = m.takeFD(); fd < 0 {
			return nil, nil, fmt.Errorf("%s message without its descriptor", name)
		}
	}
	if fd < 0 {
		return r, nil, nil
	}
	f, err := eventFile(fd, name)
	return r, f, err
}

func (s *session) setKick(m *message) ([]byte, error) {
	r, f, err := s.event(m, "kick")
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, errors.New("no kick descriptor: polling is not supported")
	}
	r.stop()
	r.setKick(f)
	r.broken = false
	s.settle(r)
	return nil, nil
}

func (s *session) setCall(m *message) ([]byte, error) {
	r, f, err := s.event(m, "call")
	if err != nil {
		return nil, err
	}
	r.call.set(f)
	if r.q != nil { // what went to the old descriptor may have gone unseen
		r.call.signal()
	}
	return nil, nil
}

func (s *session) setErr(m *message) ([]byte, error) {
	r, f, err := s.event(m, "error")
	if err != nil {
		return nil, err
	}
	r.errs.set(f)
	return nil, nil
}
