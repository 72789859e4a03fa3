//go:build linux

// Package relay joins two byte streams: what one side says the other hears, end of stream included, each direction on its
// own. The guest's agent uses it between a vsock connection from the host and dockerd's socket; attach, exec and build live
// by its half-close. Where there is no dockerd to join, Refuse answers in its place. guest/watch uses it for published ports,
// whose resets pass as resets (Breaker), and Datagrams for those of UDP.
package relay

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
)

// Conn is one side: a stream whose writing direction can end before the reading one.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Breaker is a Conn that tells a stream that was broken off from one that ended, and can say so to its own peer.
type Breaker interface {
	Conn
	// Break closes the connection so that its peer sees that it was broken off.
	Break()
	// Broken is, after end-of-file, whether the peer broke the connection off.
	Broken() bool
}

// errBroken is why a Pipe ends whose peer broke off.
var errBroken = errors.New("stream was broken off")

// bufSize is what one read takes at most; the guest's vsock sends packets of up to 64 KiB.
const bufSize = 64 << 10

var buffers = sync.Pool{New: func() any { return new([bufSize]byte) }}

// Pipe copies a to b and b to a until both directions have ended, and closes both. The end of one stream is passed on by
// CloseWrite and leaves the other direction open; a broken stream, or ctx's end, closes both at once, or breaks those that
// are Breakers. The error is the first that broke a stream; nil where both sides came to their end.
func Pipe(ctx context.Context, a, b Conn) error {
	closeBoth := func() { a.Close(); b.Close() }
	defer closeBoth()
	var once sync.Once
	var first error
	fail := func(err error) { once.Do(func() { first = err; breakOff(a); breakOff(b) }) }
	defer context.AfterFunc(ctx, func() { fail(context.Cause(ctx)) })()

	var wg sync.WaitGroup
	wg.Go(func() { direct(b, a, fail) })
	wg.Go(func() { direct(a, b, fail) })
	wg.Wait()
	once.Do(func() {}) // what ctx says from now on comes too late
	return first
}

func breakOff(c Conn) {
	if b, ok := c.(Breaker); ok {
		b.Break()
		return
	}
	c.Close()
}

// direct copies src to dst to src's end. When dst takes no more, src's sender is told so where that can be said; dst may
// still have something to say, so the other direction goes on. A Breaker that takes no more was broken off.
func direct(dst, src Conn, fail func(error)) {
	read := reader(src)
	for {
		buf, n, err := read()
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				buffers.Put(buf)
				if _, ok := dst.(Breaker); ok {
					fail(werr)
					return
				}
				if c, ok := src.(interface{ CloseRead() error }); ok {
					_ = c.CloseRead()
				}
				return
			}
		}
		if buf != nil {
			buffers.Put(buf)
		}
		switch {
		case errors.Is(err, io.EOF):
			if b, ok := src.(Breaker); ok && b.Broken() {
				fail(errBroken)
				return
			}
			_ = dst.CloseWrite()
			return
		case err != nil:
			fail(err)
			return
		}
	}
}

// reader returns a function that blocks until src has bytes and reads them into a buffer from the pool. Where src is backed
// by a file descriptor, no buffer is held while it blocks: a thousand idle streams cost no memory.
func reader(src Conn) func() (*[bufSize]byte, int, error) {
	if sc, ok := src.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			return func() (*[bufSize]byte, int, error) { return readRaw(raw) }
		}
	}
	return func() (*[bufSize]byte, int, error) {
		buf := buffers.Get().(*[bufSize]byte)
		n, err := src.Read(buf[:])
		return buf, n, err
	}
}

func readRaw(raw syscall.RawConn) (buf *[bufSize]byte, n int, err error) {
	var rerr error
	err = raw.Read(func(fd uintptr) bool {
		buf = buffers.Get().(*[bufSize]byte)
		for {
			n, rerr = syscall.Read(int(fd), buf[:])
			if !errors.Is(rerr, syscall.EINTR) {
				break
			}
		}
		if errors.Is(rerr, syscall.EAGAIN) {
			buffers.Put(buf)
			buf = nil
			return false
		}
		return true
	})
	switch {
	case err != nil:
		return buf, 0, err
	case rerr != nil:
		return buf, 0, rerr
	case n == 0:
		return buf, 0, io.EOF
	}
	return buf, n, nil
}
