//go:build linux

package relay

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"syscall"

	"github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/sys/unix"
)

// headSize is how long the length before a datagram is on a stream.
const headSize = 2

// Datagrams carries datagrams both ways between a stream, where api.Connect says how they are told apart, and a connected
// socket, until the stream or ctx ends, and closes both. A datagram that the socket's peer does not want is lost.
func Datagrams(ctx context.Context, stream Conn, socket *net.UDPConn) error {
	var once sync.Once
	var first error
	end := func(err error) { once.Do(func() { first = err; stream.Close(); socket.Close() }) }
	defer context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })()
	raw, err := socket.SyscallConn()
	if err != nil {
		end(err)
		return err
	}
	var both sync.WaitGroup
	both.Go(func() { end(toSocket(stream, socket)) })
	both.Go(func() { end(toStream(raw, stream)) })
	both.Wait()
	return first
}

func toSocket(stream Conn, socket *net.UDPConn) error {
	in := bufio.NewReaderSize(stream, headSize+2048)
	for {
		if _, err := in.Peek(1); err != nil {
			return err
		}
		buf := buffers.Get().(*[bufSize]byte) // none is held while nothing comes
		n, err := api.ReadDatagram(in, buf[:])
		if err == nil {
			_, err = socket.Write(buf[:n])
			if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EMSGSIZE) {
				err = nil
			}
		}
		buffers.Put(buf)
		if err != nil {
			return err
		}
	}
}

func toStream(socket syscall.RawConn, stream Conn) error {
	return receiveAll(socket, headSize, func(b []byte) error {
		binary.BigEndian.PutUint16(b, uint16(len(b)-headSize))
		_, err := stream.Write(b)
		return err
	})
}

// Receive calls f with each datagram that comes to a connected socket, until f or the socket fails. While nothing comes no
// buffer is held. Word that an earlier datagram found nobody is passed over.
func Receive(socket *net.UDPConn, f func([]byte) error) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	return receiveAll(raw, 0, f)
}

// receiveAll is Receive, with room bytes before each datagram.
func receiveAll(socket syscall.RawConn, room int, f func([]byte) error) error {
	for {
		buf, n, err := receive(socket, room)
		if errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		if err != nil {
			return err
		}
		err = f(buf[:room+n])
		buffers.Put(buf)
		if err != nil {
			return err
		}
	}
}

// receive blocks until a datagram has come and reads it behind room bytes; buf is nil after an error.
func receive(socket syscall.RawConn, room int) (buf *[bufSize]byte, n int, err error) {
	var rerr error
	err = socket.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[bufSize]byte)
		for {
			n, rerr = unix.Read(int(fd), buf[room:room+api.MaxDatagram])
			if !errors.Is(rerr, unix.EINTR) {
				break
			}
		}
		if rerr != nil {
			buffers.Put(buf)
			buf = nil
		}
		return !errors.Is(rerr, unix.EAGAIN)
	})
	if err == nil {
		err = rerr
	}
	return buf, n, err
}
