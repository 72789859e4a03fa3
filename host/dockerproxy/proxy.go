// Package dockerproxy carries a machine's Docker socket: every connection that a client opens becomes one stream to the
// guest, each of whose directions has its own end, so that attach, exec and build work as on the engine's own socket. It waits
// for nothing but bytes. Its neighbours are the listener of host/socket and the guest's relay, which an injected Dial reaches.
//
// With a Policy the requests on a connection are read. Their heads are parsed by net/http, which is dockerd's parser too, and
// pass as they are; bodies stream by their framing; what two parsers could understand differently is refused. Requests that
// name paths of the host (containers/create, volumes/create, services/create and update) are read whole, checked and written
// anew. Answers pass unread, with one exception: where the engine may stop speaking HTTP (attach, exec, session, grpc, any
// Upgrade), the head of its answer decides. 101, or a body that ends with the connection: the rest is spliced. Anything
// else, such as 404 for an exec that is gone: requests go on being read. What the client sends meanwhile waits. So that this
// answer can be told from earlier ones it is the first on its stream: a connection that was used before goes on with a stream
// of its own, after the answers of the one before it have ended. Clients that ask so open a connection for it anyway, except
// docker-py and some Java ones, for which it works and costs a dial. Pipelining clients are served in order; if one pipelines
// such a request, or one that is refused, dockerd may give up what it is still at, as it does when a client's input ends.
// Connections that begin with HTTP/2's preface, as gRPC's do, end here and are checked request by request.
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
	// Policy decides about host paths. Without one every byte passes unread.
	Policy Policy
	Log    *slog.Logger
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
	ctx, abort := context.WithCancel(ctx)
	defer abort()
	defer context.AfterFunc(ctx, func() {
		client.Close()
		engine.Close()
	})()
	if p.Policy != nil {
		newSession(p, client, abort).run(ctx, engine)
		return
	}
	var up sync.WaitGroup
	up.Go(func() { direction{dst: engine, src: client, abort: abort}.pass() })
	direction{dst: client, src: engine, abort: abort}.pass()
	up.Wait()
}

var buffers = sync.Pool{New: func() any { return new([64 << 10]byte) }}

// direction is one half of a connection.
type direction struct {
	dst, src net.Conn
	abort    func()            // ends both halves
	seen     func(data []byte) // is told what has passed; nil: nobody wants to know
	end      func() bool       // whether src's end is dst's end too; nil: it is
}

// pass carries one direction to its end. End-of-file at src becomes end-of-file at dst. When dst takes no more, src is
// told so and the other direction goes on: an engine that refuses an upload and closes still has its answer on the way.
// An error of src, which is a peer that broke off, ends both directions at once.
func (d direction) pass() {
	buf := buffers.Get().(*[64 << 10]byte)
	defer buffers.Put(buf)
	for {
		n, err := d.src.Read(buf[:])
		if n > 0 {
			if _, werr := d.dst.Write(buf[:n]); werr != nil {
				d.takesNoMore()
				return
			}
			if d.seen != nil {
				d.seen(buf[:n])
			}
		}
		switch {
		case err == nil:
			continue
		case d.end != nil && !d.end():
		case !errors.Is(err, io.EOF):
			d.abort()
		default:
			d.endOfFile()
		}
		return
	}
}

// takesNoMore is for an error of dst.
func (d direction) takesNoMore() {
	if c, ok := d.src.(closeReader); !ok || c.CloseRead() != nil {
		d.abort()
	}
}

// endOfFile is for the end of src. Where it cannot be told, dst is gone and its own direction says so.
func (d direction) endOfFile() {
	if c, ok := d.dst.(closeWriter); ok {
		_ = c.CloseWrite()
		return
	}
	d.abort()
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
	answer(client, req, &refusal{http.StatusServiceUnavailable, reason.Error()})
}

// answer writes an answer in the engine's form as the last one on client, and waits a little for the client to have read it.
func answer(client net.Conn, req *http.Request, why *refusal) {
	_ = client.SetDeadline(time.Now().Add(refuseTime))
	body, err := json.Marshal(map[string]string{"message": why.message})
	if err != nil {
		return
	}
	resp := http.Response{
		StatusCode: why.status, ProtoMajor: 1, ProtoMinor: 1, Close: true,
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
