package dockerproxy_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/host/dockerproxy"
)

// patience bounds everything that a test waits for.
const patience = 20 * time.Second

// start serves a proxy whose engine runs engine for each stream, and returns the path of its socket. At the test's end the
// proxy must be gone without a trace.
func start(t testing.TB, engine func(*net.UnixConn)) string {
	t.Helper()
	return startWith(t, nil, engine)
}

func startWith(t testing.TB, policy dockerproxy.Policy, engine func(*net.UnixConn)) string {
	t.Helper()
	path := listenEngine(t, engine)
	return servePolicy(t, policy, func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	})
}

// listenEngine is an engine on a unix socket of its own.
func listenEngine(t testing.TB, engine func(*net.UnixConn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "e")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var streams sync.WaitGroup
	streams.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			streams.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(2 * patience))
				engine(c.(*net.UnixConn))
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		streams.Wait()
	})
	return path
}

// serve runs a proxy whose Dial is dial.
func serve(t testing.TB, dial func(context.Context) (net.Conn, error)) string {
	t.Helper()
	return servePolicy(t, nil, dial)
}

func servePolicy(t testing.TB, policy dockerproxy.Policy, dial func(context.Context) (net.Conn, error)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "p")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	p := dockerproxy.Proxy{Dial: dial, Policy: policy, Log: slog.New(slog.DiscardHandler)}
	go func() { done <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve returned %v", err)
			}
		case <-time.After(patience):
			t.Error("Serve did not end")
		}
	})
	return path
}

func connect(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	return c.(*net.UnixConn)
}

// noise is n bytes that no two seeds have in common.
func noise(seed uint64, n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}), n)
}

func digest(t testing.TB, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		t.Errorf("read after %d bytes: %v", n, err)
	}
	return fmt.Sprintf("%d bytes %x", n, h.Sum(nil)[:8])
}

// TestBytes has both directions carry different bytes at once, each to its own end.
func TestBytes(t *testing.T) { inModes(t, testBytes) }

func testBytes(t *testing.T, m mode) {
	size := int64(256 << 20)
	if testing.Short() {
		size = 8 << 20
	}
	got := make(chan string, 1)
	client := m.connect(t, m.start(t, func(c *net.UnixConn) {
		var down sync.WaitGroup
		down.Go(func() {
			if _, err := io.Copy(c, noise(2, size)); err != nil {
				t.Errorf("engine's write: %v", err)
			}
			c.CloseWrite()
		})
		got <- digest(t, c)
		down.Wait()
	}))
	var up sync.WaitGroup
	up.Go(func() {
		if _, err := io.Copy(client, noise(1, size)); err != nil {
			t.Errorf("client's write: %v", err)
		}
		client.CloseWrite()
	})
	if got, want := digest(t, client), digest(t, noise(2, size)); got != want {
		t.Errorf("client read %s: want %s", got, want)
	}
	up.Wait()
	if got, want := <-got, digest(t, noise(1, size)); got != want {
		t.Errorf("engine read %s: want %s", got, want)
	}
}

// TestHalfClose has one side end, and the other one speak after it.
func TestHalfClose(t *testing.T) { inModes(t, testHalfClose) }

func testHalfClose(t *testing.T, m mode) {
	t.Run("client first", func(t *testing.T) {
		client := m.connect(t, m.start(t, func(c *net.UnixConn) {
			in, _ := io.ReadAll(c)
			fmt.Fprintf(c, "heard %s", in)
		}))
		io.WriteString(client, "all")
		client.CloseWrite()
		if answer, err := io.ReadAll(client); string(answer) != "heard all" || err != nil {
			t.Errorf("answer is %q, error %v", answer, err)
		}
	})
	t.Run("engine first", func(t *testing.T) {
		heard := make(chan string, 1)
		client := m.connect(t, m.start(t, func(c *net.UnixConn) {
			io.WriteString(c, "no more from me")
			c.CloseWrite()
			in, err := io.ReadAll(c)
			heard <- fmt.Sprintf("%s, %v", in, err)
		}))
		if answer, err := io.ReadAll(client); string(answer) != "no more from me" || err != nil {
			t.Errorf("answer is %q, error %v", answer, err)
		}
		io.WriteString(client, "late")
		client.CloseWrite()
		if got := <-heard; got != "late, <nil>" {
			t.Errorf("engine heard %s", got)
		}
	})
	t.Run("engine refuses an upload", func(t *testing.T) { // and the client still gets its answer
		client := m.connect(t, m.start(t, func(c *net.UnixConn) {
			io.ReadFull(c, make([]byte, 10))
			io.WriteString(c, "too large")
		}))
		go io.Copy(client, noise(1, 64<<20))
		answer := make([]byte, 9)
		if _, err := io.ReadFull(client, answer); string(answer) != "too large" || err != nil {
			t.Errorf("answer is %q, error %v", answer, err)
		}
	})
}

// TestUpgraded has both sides change to raw bytes in the middle of a stream, as attach and exec do.
func TestUpgraded(t *testing.T) {
	client := connect(t, start(t, func(c *net.UnixConn) {
		head := make([]byte, len("POST /attach\r\n\r\n"))
		io.ReadFull(c, head)
		io.WriteString(c, "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
		io.Copy(c, c)
	}))
	io.WriteString(client, "POST /attach\r\n\r\n\x00raw\xff") // in one write: nothing may be held back
	want := "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n\x00raw\xff"
	got := make([]byte, len(want))
	if _, err := io.ReadFull(client, got); string(got) != want || err != nil {
		t.Fatalf("got %q, error %v", got, err)
	}
	for _, key := range "typed" { // a key at a time
		io.WriteString(client, string(key))
		if _, err := io.ReadFull(client, got[:1]); got[0] != byte(key) || err != nil {
			t.Fatalf("key %q came back as %q, error %v", key, got[:1], err)
		}
	}
	client.CloseWrite()
	if rest, err := io.ReadAll(client); len(rest) > 0 || err != nil {
		t.Errorf("at the end came %q, error %v", rest, err)
	}
}

// TestSlowReader stops reading: the engine must stop too, instead of the proxy's memory filling, and go on afterwards.
func TestSlowReader(t *testing.T) { inModes(t, testSlowReader) }

func testSlowReader(t *testing.T, m mode) {
	const size, most = 32 << 20, 4 << 20
	var sent atomic.Int64
	client := m.connect(t, m.start(t, func(c *net.UnixConn) {
		r, buf := noise(3, size), make([]byte, 32<<10)
		for {
			n, err := r.Read(buf)
			if _, werr := c.Write(buf[:n]); werr != nil || err != nil {
				return
			}
			sent.Add(int64(n))
		}
	}))
	last := int64(-1)
	for now := sent.Load(); now != last || now == 0; now = sent.Load() {
		last = now
		time.Sleep(100 * time.Millisecond)
	}
	if last > most {
		t.Errorf("the engine got rid of %d bytes that nobody reads: want at most %d", last, most)
	}
	if got, want := digest(t, client), digest(t, noise(3, size)); got != want {
		t.Errorf("client read %s: want %s", got, want)
	}
}

// TestBrokenPeers has either side vanish; the other one must learn of it and not wait for ever.
func TestBrokenPeers(t *testing.T) { inModes(t, testBrokenPeers) }

func testBrokenPeers(t *testing.T, m mode) {
	t.Run("client dies with output unread", func(t *testing.T) {
		wrote, ended := make(chan struct{}), make(chan error, 1)
		client := m.connect(t, m.start(t, func(c *net.UnixConn) {
			io.WriteString(c, "unread")
			close(wrote)
			buf := make([]byte, 1)
			_, err := c.Read(buf)
			ended <- err
		}))
		<-wrote
		client.Read(make([]byte, 1)) // the rest is in the client's socket
		client.Close()
		if err := <-ended; err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("engine's read ended with %v", err)
		}
	})
	t.Run("client dies while the engine streams", func(t *testing.T) {
		ended := make(chan error, 1)
		client := m.connect(t, m.start(t, func(c *net.UnixConn) {
			_, err := io.Copy(c, noise(4, 1<<40))
			ended <- err
		}))
		io.ReadFull(client, make([]byte, 1000))
		client.Close()
		select {
		case err := <-ended:
			if err == nil {
				t.Error("engine's write went on")
			}
		case <-time.After(patience):
			t.Error("the engine streams to nobody")
		}
	})
	t.Run("engine resets", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client := connect(t, serve(t, func(ctx context.Context) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		}))
		engine, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(client, "hello")
		io.ReadFull(engine, make([]byte, 5))
		engine.(*net.TCPConn).SetLinger(0)
		engine.Close()
		client.SetDeadline(time.Now().Add(patience))
		if n, err := client.Read(make([]byte, 1)); n > 0 || errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
			t.Errorf("client's read: %d bytes, error %v", n, err)
		}
		if _, err := io.Copy(client, noise(1, 16<<20)); err == nil || isTimeout(err) {
			t.Errorf("client's write: error %v", err)
		}
	})
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// TestCrowd has a thousand clients talk at once, while one of them does not read.
func TestCrowd(t *testing.T) { inModes(t, testCrowd) }

func testCrowd(t *testing.T, m mode) {
	path := m.start(t, func(c *net.UnixConn) { io.Copy(c, c) })
	lazy := m.connect(t, path)
	var wait sync.WaitGroup
	wait.Go(func() { io.Copy(lazy, noise(9, 8<<20)) })
	defer wait.Wait()
	defer lazy.Close()
	const clients, size = 1000, 5000
	var ready, all sync.WaitGroup
	ready.Add(clients)
	for i := range clients {
		all.Go(func() {
			c, err := m.dial(path)
			ready.Done()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(2 * patience))
			ready.Wait() // now they are a thousand at once
			mine, _ := io.ReadAll(noise(uint64(i), size))
			all.Go(func() {
				c.Write(mine)
				c.CloseWrite()
			})
			if got, err := io.ReadAll(c); !bytes.Equal(got, mine) || err != nil {
				t.Errorf("client %d got %d bytes back, not its own %d; error %v", i, len(got), size, err)
			}
		})
	}
	all.Wait()
}

// TestServeEnds leaves streams in every condition and has Serve end: it must take all of them with it.
func TestServeEnds(t *testing.T) {
	engine := listenEngine(t, func(c *net.UnixConn) { io.Copy(io.Discard, c) })
	flood := listenEngine(t, func(c *net.UnixConn) { io.Copy(c, noise(1, 1<<40)) })
	before := runtime.NumGoroutine()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "p"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var turn atomic.Int32
	dial := func(ctx context.Context) (net.Conn, error) {
		switch turn.Add(1) {
		case 1:
			return net.Dial("unix", engine)
		case 2:
			return net.Dial("unix", flood)
		case 3:
			<-ctx.Done() // an engine that is starting
		}
		return nil, errors.New("no engine") // to a client that says nothing
	}
	done := make(chan error)
	p := dockerproxy.Proxy{Dial: dial, Log: slog.New(slog.DiscardHandler)}
	go func() { done <- p.Serve(ctx, l) }()
	for i := range 4 {
		connect(t, l.Addr().String())
		for turn.Load() <= int32(i) {
			time.Sleep(time.Millisecond)
		}
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("Serve did not end")
	}
	for end := time.Now().Add(patience); runtime.NumGoroutine() > before; {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := net.Dial("unix", l.Addr().String()); err == nil {
		t.Error("the socket still answers")
	}
}

// TestServeListener tells a listener that was closed from one that failed.
func TestServeListener(t *testing.T) {
	p := dockerproxy.Proxy{Log: slog.New(slog.DiscardHandler)}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "p"))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := p.Serve(t.Context(), l); err != nil {
		t.Errorf("closed: error is %v", err)
	}
	broken := errors.New("broken")
	if err := p.Serve(t.Context(), failing{l, broken}); !errors.Is(err, broken) {
		t.Errorf("failing: error is %v", err)
	}
}

type failing struct {
	net.Listener
	err error
}

func (l failing) Accept() (net.Conn, error) { return nil, l.err }
