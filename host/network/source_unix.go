//go:build unix

package network

import (
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// source reads a socket without holding a buffer while there is nothing to read.
type source struct {
	raw      syscall.RawConn
	datagram bool // an empty read is a datagram, not an end
}

func newSource(c syscall.Conn) (source, error) {
	raw, err := c.SyscallConn()
	return source{raw: raw}, err
}

// read waits until there is something and returns it in a buffer that the caller gives back. Errors are those of
// net.Conn.Read.
func (s source) read() (*[]byte, int, error) {
	var buf *[]byte
	var n int
	var err error
	waitErr := s.raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[]byte)
		for {
			n, err = unix.Read(int(fd), *buf)
			if err != unix.EINTR {
				break
			}
		}
		if err != nil {
			buffers.Put(buf)
		}
		return err != unix.EAGAIN
	})
	switch {
	case waitErr != nil:
		return nil, 0, waitErr
	case err != nil:
		return nil, 0, os.NewSyscallError("read", err)
	case n == 0 && !s.datagram:
		buffers.Put(buf)
		return nil, 0, io.EOF
	}
	return buf, n, nil
}
