package dockerproxy

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
)

// http2 serves a client that speaks HTTP/2 from its first byte, as gRPC clients do (RFC 9113, section 3.3). Streams end here
// and are made anew on one connection to the engine, so that the policy sees their requests. head is what was read so far.
func (s *session) http2(ctx context.Context, head []byte) {
	if !s.retire() { // unused: the transport below dials its own
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log := slog.NewLogLogger(s.proxy.Log.Handler(), slog.LevelDebug)
	var only http.Protocols
	only.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: &only, DisableCompression: true, DialContext: func(dial context.Context, _, _ string) (net.Conn, error) {
		c, err := s.proxy.Dial(dial)
		if err == nil {
			context.AfterFunc(ctx, func() { c.Close() })
		}
		return c, err
	}}
	forward := &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.URL.RawQuery = "http", "docker", r.In.URL.RawQuery
			r.Out.Host = r.In.Host
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			reply(w, &refusal{http.StatusServiceUnavailable, err.Error()})
		},
		ErrorLog: log,
	}
	var handlers sync.RWMutex // held for reading by each; what comes when it is held for writing comes too late
	server := &http.Server{Protocols: &only, ErrorLog: log, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !handlers.TryRLock() {
			return
		}
		defer handlers.RUnlock()
		if err := s.checkHTTP2(r); err != nil {
			reply(w, err)
			return
		}
		forward.ServeHTTP(w, r)
	})}
	s.lent = true
	conn := &rest{Conn: s.client, Reader: io.MultiReader(bytes.NewReader(head), s.in), closed: make(chan struct{})}
	_ = server.Serve(&oneConn{conn: conn}) // ends with the connection
	cancel()
	handlers.Lock()
	transport.CloseIdleConnections()
}

// checkHTTP2 checks a request that names host paths and replaces its body.
func (s *session) checkHTTP2(r *http.Request) error {
	check := checkerOf(r)
	if check == nil {
		return nil
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return badRequest("read the request's body: %v", err)
	}
	if len(data) == 0 {
		return nil
	}
	if data, err = rewrite(check, s.proxy.Policy, data); err != nil {
		return err
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(data)), int64(len(data))
	r.Header.Del("Content-Length")
	return nil
}

// reply is answer for a request that net/http serves.
func reply(w http.ResponseWriter, err error) {
	why := &refusal{http.StatusInternalServerError, err.Error()}
	errors.As(err, &why)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(why.status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": why.message})
}

// rest is a connection some of whose bytes were read before.
type rest struct {
	net.Conn
	io.Reader
	once   sync.Once
	closed chan struct{}
}

func (c *rest) Read(b []byte) (int, error) { return c.Reader.Read(b) }

func (c *rest) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// oneConn is a listener that accepts one connection and ends with it.
type oneConn struct {
	conn *rest
	done bool
}

func (l *oneConn) Accept() (net.Conn, error) {
	if !l.done {
		l.done = true
		return l.conn, nil
	}
	<-l.conn.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }
