package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Virtio feature bits of the transport and the rings (virtio 1.2 section 6), and the one that vhost-user adds.
const (
	featureIndirect = 1 << 28
	featureEventIdx = 1 << 29
	featureProtocol = 1 << 30
	featureVersion1 = 1 << 32

	ringFeatures = featureIndirect | featureEventIdx | featureProtocol | featureVersion1
)

// Protocol feature bits (vhost-user.rst, "Protocol features").
const (
	protocolMQ       = 1 << 0
	protocolReplyAck = 1 << 3
	protocolConfig   = 1 << 9

	protocolFeatures = protocolMQ | protocolReplyAck | protocolConfig
)

// Device is what a virtio device has of its own. Its methods may be called from several goroutines.
type Device interface {
	// Features are the feature bits of the device type; those of the rings are added.
	Features() uint64
	// Config is the device's configuration space; nil where the front end has one of its own (virtio-fs).
	Config() []byte
	// Queues is how many queues it has here.
	Queues() int
	// Run works on a queue that the front end has started, until q.Wait returns ErrStopped or anything on q fails, and
	// returns that error. It looks at the ring before it first waits. When it returns, nothing of the device uses q or a
	// Chain of it any more, and every Chain has been pushed back. Stopping is not the end: the front end also stops a
	// queue to pause its guest, and starts it again.
	Run(q *Queue) error
}

// Serve answers one front end on conn until it disconnects, which is no error, or ctx ends. It closes conn, and every
// queue has stopped when it returns.
func Serve(ctx context.Context, conn *net.UnixConn, dev Device, log *slog.Logger) error {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s := newSession(dev, log)
	defer s.close()
	for {
		m, err := readMessage(conn)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("serve vhost-user: %w", err)
		}
		reply, err := s.answer(m)
		if reply != nil {
			if _, werr := conn.Write(reply); err == nil && werr != nil && !errors.Is(werr, unix.EPIPE) {
				err = werr
			}
		}
		if err != nil {
			return fmt.Errorf("serve vhost-user: message %d: %w", m.request, err)
		}
	}
}

// session is the state of one front end's connection. One goroutine uses it.
type session struct {
	dev      Device
	log      *slog.Logger
	features uint64
	protocol uint64
	mem      *memory
	rings    []*vring
}

func newSession(dev Device, log *slog.Logger) *session {
	s := &session{dev: dev, log: log}
	for i := range dev.Queues() {
		s.rings = append(s.rings, &vring{index: i})
	}
	return s
}

func (s *session) close() {
	for _, r := range s.rings {
		r.stop()
		r.close()
	}
	if s.mem != nil {
		s.mem.release()
	}
}

// answer handles m, descriptors and all, and returns the bytes to reply, nil for none.
func (s *session) answer(m *message) ([]byte, error) {
	defer m.drop()
	handle, ok := handlers[m.request]
	if !ok {
		return nil, errors.New("unknown message")
	}
	payload, err := handle(s, m)
	if payload == nil && m.flags&flagNeedAck != 0 && s.protocol&protocolReplyAck != 0 {
		payload = encodeU64(0)
		if err != nil {
			payload = encodeU64(1)
		}
	}
	if payload == nil {
		return nil, err
	}
	return encodeReply(m.request, payload), err
}

var handlers = map[request]func(*session, *message) ([]byte, error){
	getFeatures:         func(s *session, _ *message) ([]byte, error) { return encodeU64(s.dev.Features() | ringFeatures), nil },
	setFeatures:         (*session).setFeatures,
	setOwner:            func(*session, *message) ([]byte, error) { return nil, nil },
	resetOwner:          func(*session, *message) ([]byte, error) { return nil, nil },
	setMemTable:         (*session).setMemory,
	setVringNum:         (*session).setRingSize,
	setVringAddr:        (*session).setRingAddr,
	setVringBase:        (*session).setRingBase,
	getVringBase:        (*session).stopRing,
	setVringKick:        (*session).setKick,
	setVringCall:        (*session).setCall,
	setVringErr:         (*session).setErr,
	getProtocolFeatures: func(s *session, _ *message) ([]byte, error) { return encodeU64(s.offered()), nil },
	setProtocolFeatures: (*session).setProtocol,
	getQueueNum:         func(s *session, _ *message) ([]byte, error) { return encodeU64(uint64(len(s.rings))), nil },
	setVringEnable:      (*session).enableRing,
	getConfig:           func(s *session, m *message) ([]byte, error) { return s.readConfig(m) },
	setConfig:           func(*session, *message) ([]byte, error) { return nil, nil }, // no device of ours has a writable field
}

func (s *session) setFeatures(m *message) ([]byte, error) {
	v, err := decodeU64(m.payload)
	if err == nil && v&^(s.dev.Features()|ringFeatures) != 0 {
		err = fmt.Errorf("features %#x were not offered", v)
	}
	if err != nil {
		return nil, err
	}
	s.features = v
	return nil, nil
}

// offered are the protocol features that the device has use for.
func (s *session) offered() uint64 {
	if s.dev.Config() == nil {
		return protocolFeatures &^ protocolConfig
	}
	return protocolFeatures
}

func (s *session) setProtocol(m *message) ([]byte, error) {
	v, err := decodeU64(m.payload)
	if err == nil && v&^s.offered() != 0 {
		err = fmt.Errorf("protocol features %#x were not offered", v)
	}
	if err != nil {
		return nil, err
	}
	s.protocol = v
	return nil, nil
}

func (s *session) readConfig(m *message) ([]byte, error) {
	b, err := readConfig(m.payload, s.dev.Config())
	if err == nil && b == nil {
		b = []byte{} // an empty reply says no
	}
	return b, err
}

// setMemory takes a new memory table. A queue that runs is moved to it without the driver noticing. One whose ring does
// not lie in the new table (the front end is about to set it anew) stays on the old, which stays mapped that long.
func (s *session) setMemory(m *message) ([]byte, error) {
	specs, err := decodeMemTable(m.payload)
	if err != nil {
		return nil, err
	}
	mem, err := mapMemory(specs, m.fds)
	if err != nil {
		return nil, err
	}
	old := s.mem
	s.mem = mem
	for _, r := range s.rings {
		if r.q == nil {
			continue
		}
		if _, err := locate(mem, r.addr, r.size); err == nil {
			r.stop()
			s.settle(r)
		}
	}
	if old != nil {
		old.release()
	}
	return nil, nil
}

// eventFile makes a file of a kick or call descriptor, such that reads wait in the runtime's poller. The descriptor's
// status flags are shared with the front end: O_NONBLOCK may be set but is never to be cleared, or the front end hangs.
// For that reason nothing may call Fd on the file.
func eventFile(fd int, name string) (*os.File, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set %s descriptor non-blocking: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
