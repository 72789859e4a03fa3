package dockerproxy

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"
)

// session is one client's connection whose requests are read. The goroutine of run reads requests; each stream has one more,
// which carries its answers.
type session struct {
	proxy  *Proxy
	client net.Conn
	in     *bufio.Reader // of client
	lent   bool          // in is net/http's, which does not say when it is done with it
	abort  func()        // ends the whole session
	engine *stream       // where requests go now
	downs  sync.WaitGroup

	mu   sync.Mutex
	told bool // the client was told that no more answers come
}

// stream is a connection to the engine.
type stream struct {
	net.Conn
	used    bool                    // a request was sent; known to the reader of requests alone
	verdict atomic.Pointer[verdict] // is to see the first answer
	retired bool                    // its end is not the client's; guarded by the session's mu
	ended   chan struct{}           // closed when all its answers have passed
	stop    func() bool             // forgets to close it at the session's end
}

var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 64<<10) }}

func newSession(p *Proxy, client net.Conn, abort func()) *session {
	in := readers.Get().(*bufio.Reader)
	in.Reset(client)
	return &session{proxy: p, client: client, abort: abort, in: in}
}

// run serves the client until both directions have ended. It owns engine. The end of ctx closes it.
func (s *session) run(ctx context.Context, engine net.Conn) {
	s.use(ctx, engine)
	defer func() {
		s.downs.Wait()
		s.engine.drop()
		if !s.lent {
			s.in.Reset(nil)
			readers.Put(s.in)
		}
	}()
	for first := true; s.next(ctx, first); first = false {
	}
}

// use makes engine the stream of the requests to come.
func (s *session) use(ctx context.Context, engine net.Conn) {
	st := &stream{Conn: engine, ended: make(chan struct{}), stop: context.AfterFunc(ctx, func() { engine.Close() })}
	s.engine = st
	s.downs.Go(func() {
		defer close(st.ended)
		direction{dst: s.client, src: engine, abort: s.abort, seen: st.see, end: func() bool { return s.lastAnswer(st) }}.pass()
	})
}

func (st *stream) drop() {
	st.stop()
	st.Close()
}

func (st *stream) see(b []byte) {
	if v := st.verdict.Load(); v != nil && v.see(b) {
		st.verdict.Store(nil)
	}
}

// lastAnswer is whether the end of st's answers is the end of the client's.
func (s *session) lastAnswer(st *stream) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = s.told || !st.retired
	return !st.retired
}

// retire ends the requests to the engine's stream and waits until its answers have passed. It is false where the client was
// already told that no more come.
func (s *session) retire() bool {
	st := s.engine
	s.mu.Lock()
	st.retired = !s.told
	s.mu.Unlock()
	if !st.retired {
		return false
	}
	if c, ok := st.Conn.(closeWriter); !st.used || !ok || c.CloseWrite() != nil {
		st.Close()
	}
	<-st.ended
	st.drop()
	return true
}

// fresh makes the engine's stream one that has had no request.
func (s *session) fresh(ctx context.Context) error {
	if !s.engine.used {
		return nil
	}
	if !s.retire() {
		return errEngineGone
	}
	engine, err := s.proxy.Dial(ctx)
	if err != nil {
		return &refusal{http.StatusServiceUnavailable, err.Error()}
	}
	s.use(ctx, engine)
	return nil
}

var errEngineGone = errors.New("the engine takes no more requests")

// next carries the next request, and is false when no other one can follow.
func (s *session) next(ctx context.Context, first bool) bool {
	head, err := readHead(s.in)
	if err != nil {
		return s.failed(nil, err)
	}
	if first && string(head) == preface {
		s.http2(ctx, head)
		return false
	}
	r, err := parseHead(head)
	if err != nil {
		return s.failed(nil, err)
	}
	message, body := head, framingOf(r)
	if check := checkerOf(r); check != nil && !body.over() {
		if message, err = s.checked(ctx, r, check, head, body); err != nil {
			return s.failed(r, err)
		}
		body = framing{}
	}
	var v *verdict
	if mayHijack(r) {
		if err := s.fresh(ctx); err != nil {
			return s.failed(r, err)
		}
		v = newVerdict(r)
		s.engine.verdict.Store(v)
	}
	if err := s.forward(message, body); err != nil {
		return s.failed(r, err)
	}
	if v != nil && s.spliced(v) {
		return false
	}
	if r.Close { // the engine reads no further; what else comes is no request
		s.discard()
		return false
	}
	return true
}

// checked reads the whole of a request that names host paths, and returns it as the engine is to have it.
func (s *session) checked(ctx context.Context, r *http.Request, check checker, head []byte, body framing) ([]byte, error) {
	if r.ProtoAtLeast(1, 1) && strings.Contains(strings.ToLower(r.Header.Get("Expect")), "100-continue") {
		if err := s.fresh(ctx); err != nil { // our line must not fall into an answer that is on its way
			return nil, err
		}
		if _, err := io.WriteString(s.client, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return nil, err
		}
	}
	var data []byte
	for !body.over() {
		if _, err := s.in.Peek(1); err != nil {
			return nil, err
		}
		b, _ := s.in.Peek(s.in.Buffered())
		n, err := body.take(b)
		if err != nil {
			return nil, badRequest("malformed request: %v", err)
		}
		if len(data)+n > maxBody {
			return nil, tooLarge()
		}
		data = append(data, b[:n]...)
		_, _ = s.in.Discard(n)
	}
	if len(r.TransferEncoding) > 0 {
		var err error
		if data, err = io.ReadAll(httputil.NewChunkedReader(bytes.NewReader(data))); err != nil {
			return nil, badRequest("malformed request: %v", err)
		}
	}
	data, err := rewrite(check, s.proxy.Policy, data)
	if err != nil {
		return nil, err
	}
	return append(reframe(head, len(data)), data...), nil
}

// forward sends a message's beginning, and the rest of its body as it comes.
func (s *session) forward(message []byte, body framing) error {
	s.engine.used = true
	for {
		if len(message) > 0 && (body.over() || s.in.Buffered() == 0) { // else head and what is there of the body go together
			if _, err := s.engine.Write(message); err != nil {
				return errEngineGone
			}
			message = nil
		}
		if body.over() {
			return nil
		}
		if _, err := s.in.Peek(1); err != nil {
			return err
		}
		b, _ := s.in.Peek(s.in.Buffered())
		n, err := body.take(b)
		if err != nil && message != nil {
			return badRequest("malformed request: %v", err)
		}
		if err != nil {
			return err
		}
		if message == nil {
			_, err = s.engine.Write(b[:n])
		} else {
			message = append(message, b[:n]...)
		}
		if err != nil {
			return errEngineGone
		}
		_, _ = s.in.Discard(n)
	}
}

// spliced waits for the verdict on the stream, and carries it to its end where it is raw from now on. Until then nothing of
// what the client sends is read as a request or passed: the engine answers without it.
func (s *session) spliced(v *verdict) bool {
	up := direction{dst: s.engine.Conn, src: s.client, abort: s.abort}
	if _, err := s.in.Peek(1); err != nil {
		s.failed(v.request, err)
		return true
	}
	var raw bool
	select {
	case raw = <-v.spliced:
	case <-s.engine.ended: // it may have ended its side of a stream that is raw, and read on
		select {
		case raw = <-v.spliced:
		default:
			s.failed(v.request, errEngineGone)
			return true
		}
	}
	if !raw {
		return false
	}
	b, _ := s.in.Peek(s.in.Buffered()) // not empty: it was waited for
	if _, err := s.engine.Write(b); err != nil {
		up.takesNoMore()
		return true
	}
	up.pass()
	return true
}

// failed ends the reading of requests for the reason of err, and is false.
func (s *session) failed(r *http.Request, err error) bool {
	up := direction{dst: s.engine.Conn, src: s.client, abort: s.abort}
	var why *refusal
	switch {
	case errors.As(err, &why):
		s.proxy.Log.Debug("docker request refused", "status", why.status) // the reason may quote a secret
		if s.retire() {
			answer(s.client, r, why)
		}
	case errors.Is(err, errEngineGone):
		up.takesNoMore()
	case errors.Is(err, errChunk), errors.Is(err, errTrailer):
		up.endOfFile() // the engine has the beginning, and answers that it is incomplete
		s.discard()
	case errors.Is(err, io.EOF):
		up.endOfFile()
	default:
		s.abort()
	}
	return false
}

// discard reads what the client still sends, so that it can read its answer to the end.
func (s *session) discard() {
	if _, err := io.Copy(io.Discard, s.in); err != nil {
		s.abort()
		return
	}
	direction{dst: s.engine.Conn, src: s.client, abort: s.abort}.endOfFile()
}
