package vhostuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// request is a front end's message type (vhost-user.rst, "Front-end message types").
type request uint32

const (
	getFeatures         request = 1
	setFeatures         request = 2
	setOwner            request = 3
	resetOwner          request = 4
	setMemTable         request = 5
	setVringNum         request = 8
	setVringAddr        request = 9
	setVringBase        request = 10
	getVringBase        request = 11
	setVringKick        request = 12
	setVringCall        request = 13
	setVringErr         request = 14
	getProtocolFeatures request = 15
	setProtocolFeatures request = 16
	getQueueNum         request = 17
	setVringEnable      request = 18
	getConfig           request = 24
	setConfig           request = 25
)

const (
	headerSize   = 12
	maxPayload   = 4096 // the longest message we take, a full memory table, has 264 bytes
	maxRegions   = 8
	regionSize   = 32
	flagVersion  = 1
	flagVersions = 3 // the bits that hold the version
	flagReply    = 1 << 2
	flagNeedAck  = 1 << 3
	flagNoFD     = 1 << 8 // in the u64 of a vring descriptor message: no descriptor comes with it
)

// message is one message of the front end with the descriptors that came with it, which it owns.
type message struct {
	request request
	flags   uint32
	payload []byte
	fds     []int
}

// takeFD hands over the message's next descriptor, -1 if there is none.
func (m *message) takeFD() int {
	if len(m.fds) == 0 {
		return -1
	}
	fd := m.fds[0]
	m.fds = m.fds[1:]
	return fd
}

// drop closes the descriptors that nobody took.
func (m *message) drop() {
	for _, fd := range m.fds {
		unix.Close(fd)
	}
	m.fds = nil
}

// readMessage reads one message. It returns io.EOF where the front end has disconnected between two messages. After an
// error no descriptor is left open.
func readMessage(conn *net.UnixConn) (*message, error) {
	m := &message{}
	var header [headerSize]byte
	if err := m.fill(conn, header[:]); err != nil {
		m.drop()
		return nil, err
	}
	m.request = request(binary.NativeEndian.Uint32(header[0:]))
	m.flags = binary.NativeEndian.Uint32(header[4:])
	size := binary.NativeEndian.Uint32(header[8:])
	if m.flags&flagVersions != flagVersion || size > maxPayload {
		m.drop()
		return nil, fmt.Errorf("bad message header: request %d, flags %#x, size %d", m.request, m.flags, size)
	}
	m.payload = make([]byte, size)
	if err := m.fill(conn, m.payload); err != nil {
		m.drop()
		return nil, fmt.Errorf("read message %d: %w", m.request, noEOF(err))
	}
	return m, nil
}

// fill reads all of b and collects descriptors on the way.
func (m *message) fill(conn *net.UnixConn, b []byte) error {
	for n := 0; n < len(b); {
		oob := make([]byte, unix.CmsgSpace(maxRegions*4))
		k, oobn, flags, _, err := conn.ReadMsgUnix(b[n:], oob)
		if err == nil && flags&unix.MSG_CTRUNC != 0 {
			err = errors.New("more descriptors than a message can carry")
		}
		if perr := m.collect(oob[:oobn]); err == nil {
			err = perr
		}
		if err == nil && k == 0 {
			err = io.EOF
		}
		if err != nil {
			if n > 0 {
				err = noEOF(err)
			}
			return err
		}
		n += k
	}
	return nil
}

// collect adds the descriptors in a control message.
func (m *message) collect(oob []byte) error {
	if len(oob) == 0 {
		return nil
	}
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return fmt.Errorf("parse control message: %w", err)
	}
	for i := range controls {
		if fds, err := unix.ParseUnixRights(&controls[i]); err == nil {
			m.fds = append(m.fds, fds...)
		}
	}
	if len(m.fds) > maxRegions {
		return errors.New("too many descriptors in one message")
	}
	return nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// encodeReply makes the reply to a request of payload.
func encodeReply(r request, payload []byte) []byte {
	b := make([]byte, headerSize, headerSize+len(payload))
	binary.NativeEndian.PutUint32(b[0:], uint32(r))
	binary.NativeEndian.PutUint32(b[4:], flagVersion|flagReply)
	binary.NativeEndian.PutUint32(b[8:], uint32(len(payload)))
	return append(b, payload...)
}

func encodeU64(v uint64) []byte { return binary.NativeEndian.AppendUint64(nil, v) }

func decodeU64(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, fmt.Errorf("want a payload of 8 bytes, have %d", len(b))
	}
	return binary.NativeEndian.Uint64(b), nil
}

// decodeState reads a vring state description: a ring's index and a number.
func decodeState(b []byte) (index, num uint32, err error) {
	if len(b) != 8 {
		return 0, 0, fmt.Errorf("want a vring state of 8 bytes, have %d", len(b))
	}
	return binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:]), nil
}

// ringAddr is where a ring's three parts lie, as addresses of the front end's own address space.
type ringAddr struct{ desc, used, avail uint64 }

func decodeAddr(b []byte) (index uint32, a ringAddr, err error) {
	if len(b) != 40 {
		return 0, a, fmt.Errorf("want a vring address of 40 bytes, have %d", len(b))
	}
	u64 := binary.NativeEndian.Uint64
	return binary.NativeEndian.Uint32(b), ringAddr{desc: u64(b[8:]), used: u64(b[16:]), avail: u64(b[24:])}, nil
}

// regionSpec is one entry of the memory table: size bytes of guest memory at guest-physical address guest, which the
// front end has at user, and which lie at offset in the descriptor that came with it.
type regionSpec struct{ guest, size, user, offset uint64 }

func decodeMemTable(b []byte) ([]regionSpec, error) {
	if len(b) < 8 {
		return nil, fmt.Errorf("want a memory table, have %d bytes", len(b))
	}
	n := int(min(binary.NativeEndian.Uint32(b), maxRegions+1))
	if n == 0 || n > maxRegions || len(b) != 8+n*regionSize {
		return nil, fmt.Errorf("bad memory table of %d bytes", len(b))
	}
	u64 := binary.NativeEndian.Uint64
	specs := make([]regionSpec, n)
	for i := range specs {
		e := b[8+i*regionSize:]
		specs[i] = regionSpec{guest: u64(e), size: u64(e[8:]), user: u64(e[16:]), offset: u64(e[24:])}
	}
	return specs, nil
}

// readConfig answers GET_CONFIG: the request's own offset, size and flags, and the bytes; nothing where they lie outside.
func readConfig(b, config []byte) ([]byte, error) {
	if len(b) < headerSize {
		return nil, fmt.Errorf("want a configuration request, have %d bytes", len(b))
	}
	off, size := uint64(binary.NativeEndian.Uint32(b)), uint64(binary.NativeEndian.Uint32(b[4:]))
	if off+size > uint64(len(config)) {
		return nil, nil
	}
	return append(b[:headerSize:headerSize], config[off:off+size]...), nil
}
