// Package dockerproxy carries a machine's Docker socket: every connection that a client opens becomes one stream to the
// guest, and bytes pass unread in both directions, each with its own end, so that attach, exec and build work as on the
// engine's own socket. It waits for nothing but bytes. Its neighbours are the listener of host/socket and the guest's
// relay, which an injected Dial reaches.
package dockerproxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// Proxy joins clients and engine.
type Proxy struct {
	// Dial opens a stream to the engine and bounds its own time. Its error is told to the client as the engine's answer.
	Dial func(ctx context.Context) (net.Conn, error)
	Log  *slog.Logger
}

// closeWriter and closeReader are what a stream has whose two directions end separately.
type closeWriter interface{ CloseWrite() error }
type closeReader interface{ CloseRead() error }

// Serve accepts from l until ctx ends or l fails, then closes l and every connection and returns when all are done: nil
// after ctx ended or l was closed.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var conns sync.WaitGroup
	defer func() {
		cancel()
		l.Close()
		conns.Wait()
	}()
	for {
		client, err := l.Accept()
		if err == nil {
			conns.Go(func() { p.serve(ctx, client) })
			continue
		}
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil
		}
		if !outOfFiles(err) {
			return fmt.Errorf("accept docker client: %w", err)
		}
		p.Log.Warn("docker clients must wait", "err", err)
		select { // others must end before this one can be served
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// serve owns client.
func (p *Proxy) serve(ctx context.Context, client net.Conn) {
	defer client.Close()
	engine, err := p.Dial(ctx)
	if err != nil {
		p.Log.Debug("docker client refused", "err", err)
		defer context.AfterFunc(ctx, func() { client.Close() })()
		refuse(client, err)
		return
	}
	defer engine.Close()
	abort := func() {
		client.Close()
		engine.Close()
	}
	defer context.AfterFunc(ctx, abort)()
	var up sync.WaitGroup
	up.Go(func() { pass(engine, client, abort) })
	pass(client, engine, abort)
	up.Wait()
}

var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// pass carries one direction to its end. End-of-file at src becomes end-of-file at dst. When dst takes no more, src is
// told so and the other direction goes on: an engine that refuses an upload and closes still has its answer on the way.
// An error of src, which is a peer that broke off, ends both directions at once.
func pass(dst, src net.Conn, abort func()) {
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := src.Read(buf[:])
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				if c, ok := src.(closeReader); !ok || c.CloseRead() != nil {
					abort()
				}
				return
			}
		}
		switch {
		case err == nil:
			continue
		case !errors.Is(err, io.EOF):
			abort()
			return
		}
		if c, ok := dst.(closeWriter); ok {
			_ = c.CloseWrite() // where it fails, dst is gone and its own direction says so
			return
		}
		abort()
		return
	}
}

// What refuse is ready to read and to wait for.
const (
	maxHead    = 64 << 10
	refuseTime = 5 * time.Second
)

// refuse answers the first request as an engine would, so that docker prints the reason.
func refuse(client net.Conn, reason error) {
	_ = client.SetDeadline(time.Now().Add(refuseTime))
	limited := &io.LimitedReader{R: client, N: maxHead}
	req, err := http.ReadRequest(bufio.NewReader(limited))
	if err != nil {
		return
	}
	body, err := json.Marshal(map[string]string{"message": reason.Error()})
	if err != nil {
		return
	}
	resp := http.Response{
		StatusCode: http.StatusServiceUnavailable, ProtoMajor: 1, ProtoMinor: 1, Close: true,
		Request: req, // an answer to HEAD has no body
		Header:  http.Header{"Content-Type": {"application/json"}},
		Body:    io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}
	if resp.Write(client) != nil {
		return
	}
	if c, ok := client.(closeWriter); ok && c.CloseWrite() == nil {
		_, _ = io.Copy(io.Discard, client) // a body still on its way must not turn our answer into a reset
	}
}

// outOfFiles is whether a later try may succeed.
func outOfFiles(err error) bool {
	var sys *os.SyscallError
	return errors.As(err, &sys) && isFileLimit(sys.Err)
}
