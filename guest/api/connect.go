package api

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Forward is a port of the host that leads to one in the guest.
type Forward struct {
	ID       uint64 `json:"id"`                // the guest's number for it, never used again within a boot
	Protocol string `json:"protocol"`          // "tcp" or "udp"
	Address  string `json:"address,omitempty"` // of the host; empty or unspecified (0.0.0.0, ::): what the host's setting says
	Port     uint16 `json:"port"`              // of the host
	To       string `json:"to"`                // address and port in the guest
}

// Publication is what became of a Forward: an empty Error says that it is open.
type Publication struct {
	ID    uint64 `json:"id"`
	Error string `json:"error,omitempty"` // for the user: it becomes the error of `docker run`
}

// Publisher is the part of a guest that hears what became of its forwards.
type Publisher interface {
	Published([]Publication)
}

// Connect is the first thing on a stream of PortConnect, behind the greeting: which forward it belongs to. After it, a TCP
// stream carries the connection's bytes with its half-closes; a UDP stream carries datagrams in both directions, each behind
// its length as 16 bits, big-endian. The host does not wait for an answer. Who closes a stream both of whose directions were
// not ended by CloseWrite before means a reset.
type Connect struct {
	Protocol string `json:"protocol"`
	To       string `json:"to"`             // address and port in the guest
	From     string `json:"from,omitempty"` // the client's address and port, where it can be used in the guest
}

// maxConnect bounds a Connect, in bytes.
const maxConnect = 1 << 10

// WriteConnect writes c: its length as 16 bits, big-endian, and JSON.
func WriteConnect(w io.Writer, c Connect) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if len(b) > maxConnect {
		return fmt.Errorf("connect header of %d bytes", len(b))
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	return err
}

// ReadConnect reads what WriteConnect wrote, and not one byte more.
func ReadConnect(r io.Reader) (Connect, error) {
	var c Connect
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return c, fmt.Errorf("read connect header: %w", err)
	}
	n := binary.BigEndian.Uint16(head[:])
	if n > maxConnect {
		return c, fmt.Errorf("connect header of %d bytes", n)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return c, fmt.Errorf("read connect header: %w", err)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("read connect header: %w", err)
	}
	return c, nil
}

// MaxDatagram is the longest datagram that a UDP stream carries, in bytes.
const MaxDatagram = 65507

// WriteDatagram writes one datagram to a UDP stream, in one Write.
func WriteDatagram(w io.Writer, p []byte) error {
	if len(p) > MaxDatagram {
		return errors.New("datagram too long")
	}
	_, err := w.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(p)), uint16(len(p))), p...))
	return err
}

// ReadDatagram reads one datagram into buf, which holds MaxDatagram bytes, and returns its length. io.EOF is the stream's end
// between two datagrams.
func ReadDatagram(r *bufio.Reader, buf []byte) (int, error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n > len(buf) || n > MaxDatagram {
		return 0, errors.New("datagram too long")
	}
	if _, err := io.ReadFull(r, buf[:n]); err != nil {
		return 0, fmt.Errorf("datagram cut short: %w", io.ErrUnexpectedEOF)
	}
	return n, nil
}
