//go:build !unix

package network

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// source reads a socket. It holds a buffer while it waits, since a socket of this system cannot be asked for readiness alone.
type source struct {
	conn     net.Conn
	datagram bool // an empty read is a datagram, not an end
}

func newSource(c syscall.Conn) (source, error) {
	conn, ok := c.(net.Conn)
	if !ok {
		return source{}, errors.New("not a connection")
	}
	return source{conn: conn}, nil
}

// read waits until there is something and returns it in a buffer that the caller gives back. Errors are those of
// net.Conn.Read.
func (s source) read() (*[]byte, int, error) {
	buf := buffers.Get().(*[]byte)
	n, err := s.conn.Read(*buf)
	if n == 0 && err == nil && !s.datagram {
		err = io.EOF
	}
	if err != nil {
		buffers.Put(buf)
		return nil, 0, err
	}
	return buf, n, nil
}
