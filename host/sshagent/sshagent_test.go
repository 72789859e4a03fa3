package sshagent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
)

var secret = bytes.Repeat([]byte{7}, api.SecretLen)

// record is a log that can be read while it is written.
type record struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

// world is a guest's side, a host's, and an agent that answers each question with its own bytes and 0xff as type.
type world struct {
	t      *testing.T
	guest  string
	agent  string
	socket atomic.Value // a string
	log    *record
	heard  chan byte
}

func newWorld(t *testing.T) *world {
	if runtime.GOOS == "windows" {
		t.Skip("the agents of Windows are not reached yet")
	}
	dir := t.TempDir()
	w := &world{t: t, guest: filepath.Join(dir, "g"), agent: filepath.Join(dir, "a"), log: &record{}, heard: make(chan byte, 100)}
	w.socket.Store(w.agent)
	w.listen(w.agent)
	l, err := net.Listen("unix", w.guest)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := Serve(ctx, l, secret, func() string { return w.socket.Load().(string) }, slog.New(slog.NewTextHandler(w.log, nil))); !errors.Is(err, context.Canceled) {
			t.Errorf("Serve() = %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return w
}

func (w *world) listen(path string) {
	l, err := net.Listen("unix", path)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					m, err := read(c)
					if err != nil {
						return
					}
					w.heard <- m[4]
					m[4] = 0xff
					if _, err := c.Write(m); err != nil {
						return
					}
				}
			}()
		}
	}()
}

func (w *world) dial(secret []byte) net.Conn {
	c, err := net.Dial("unix", w.guest)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		w.t.Fatal(err)
	}
	if err := api.Greet(c, secret); err != nil {
		w.t.Fatal(err)
	}
	return c
}

func message(kind byte, body string) []byte {
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(1+len(body))), kind), body...)
}

func ask(t *testing.T, c net.Conn, question []byte) []byte {
	t.Helper()
	if _, err := c.Write(question); err != nil {
		t.Fatal(err)
	}
	answer, err := read(c)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestServe(t *testing.T) {
	w := newWorld(t)
	c := w.dial(secret)
	big := strings.Repeat("k", maxMessage-1)
	for _, q := range [][]byte{message(11, ""), message(13, "sign"), message(27, big)} {
		if got := ask(t, c, q); !bytes.Equal(got, message(0xff, string(q[5:]))) || <-w.heard != q[4] {
			t.Errorf("question %d: answer %.20q", q[4], got)
		}
	}
	for _, kind := range []byte{0, 20, 21, 22, 23, 26, 255} { // smart cards, locks, nonsense
		if got := ask(t, c, message(kind, "x")); !bytes.Equal(got, failure) {
			t.Errorf("question %d was answered %.20q", kind, got)
		}
	}
	if len(w.heard) != 0 {
		t.Errorf("the agent heard %d", <-w.heard)
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(c); len(rest) != 0 || err != nil {
		t.Errorf("the end: %q, %v", rest, err)
	}
	if w.log.String() != "" {
		t.Errorf("log: %s", w.log)
	}
}

func TestServeRefuses(t *testing.T) {
	t.Run("strangers", func(t *testing.T) {
		w := newWorld(t)
		c := w.dial(bytes.Repeat([]byte{8}, api.SecretLen))
		_, _ = c.Write(message(11, ""))
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a stranger got an answer: %v", err)
		}
	})
	for name, say := range map[string]string{
		"what is for another server": "GET /containers/json HTTP/1.1\r\nHost: x\r\n\r\n", "D-Bus": "\x00AUTH EXTERNAL 30\r\n",
		"too long": string(binary.BigEndian.AppendUint32(nil, maxMessage+1)), "empty": "\x00\x00\x00\x00", "cut short": "\x00\x00\x00\x05\x0b",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			c := w.dial(secret)
			_, _ = c.Write([]byte(say))
			_ = c.(*net.UnixConn).CloseWrite()
			if rest, err := io.ReadAll(c); len(rest) != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("answer %q, %v", rest, err)
			}
			if len(w.heard) != 0 {
				t.Error("it reached the agent")
			}
		})
	}
	t.Run("too many", func(t *testing.T) {
		w := newWorld(t)
		var open []net.Conn
		for range maxConns {
			c := w.dial(secret)
			ask(t, c, message(11, ""))
			open = append(open, c)
		}
		c := w.dial(secret)
		_, _ = c.Write(message(11, ""))
		if n, err := c.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("one more got through: %v", err)
		}
		open[0].Close()
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			c := w.dial(secret)
			_, _ = c.Write(message(11, ""))
			if n, _ := c.Read(make([]byte, 1)); n == 1 {
				return
			}
			if time.Now().After(end) {
				t.Fatal("a place that became free is not given again")
			}
		}
	})
}

// TestWhatIsNoAgent is CVE-2026-79994: what the path leads to is not what it was.
func TestWhatIsNoAgent(t *testing.T) {
	for name, c := range map[string]struct {
		make func(t *testing.T, w *world) string
		log  string
	}{
		"none":         {func(*testing.T, *world) string { return "" }, "SSH_AUTH_SOCK is not set"},
		"gone":         {func(_ *testing.T, w *world) string { return w.agent + "-gone" }, "no such file"},
		"a plain file": {func(t *testing.T, w *world) string { return plain(t, w) }, "no socket"},
		"a symlink to one": {func(t *testing.T, w *world) string {
			if err := os.Symlink(plain(t, w), w.agent+"-link"); err != nil {
				t.Fatal(err)
			}
			return w.agent + "-link"
		}, "no socket"},
		"another user's": {func(t *testing.T, w *world) string {
			if os.Getuid() != 0 || runtime.GOOS != "linux" {
				t.Skip("giving a socket away needs root: run the tests as root, on Linux")
			}
			w.listen(w.agent + "2")
			if err := os.Chown(w.agent+"2", 1234, 0); err != nil {
				t.Fatal(err)
			}
			return w.agent + "2"
		}, "belongs to user 1234"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			path := c.make(t, w)
			w.socket.Store(path)
			if got := ask(t, w.dial(secret), message(11, "")); !bytes.Equal(got, failure) {
				t.Errorf("answer %.20q: want the agent's refusal", got)
			}
			for end := time.Now().Add(10 * time.Second); !strings.Contains(w.log.String(), c.log); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("log %q: want %q", w.log, c.log)
				}
			}
		})
	}
	t.Run("a symlink to the agent", func(t *testing.T) {
		w := newWorld(t)
		link := w.agent + "-link"
		if err := os.Symlink(w.agent, link); err != nil {
			t.Fatal(err)
		}
		w.socket.Store(link)
		if got := ask(t, w.dial(secret), message(11, "")); got[4] != 0xff {
			t.Errorf("answer %.20q: want the agent's own", got)
		}
	})
}

func plain(t *testing.T, w *world) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("other systems look at who answers instead")
	}
	if err := os.WriteFile(w.agent+"-file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return w.agent + "-file"
}

func FuzzCarry(f *testing.F) {
	f.Add(append(message(11, ""), message(20, "lib.so")...))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		agent := &echo{t: t}
		_ = carry(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(data), io.Discard}, agent)
	})
}

// echo fails the test when it hears what is no whole message of those that pass.
type echo struct {
	t      *testing.T
	answer bytes.Buffer
}

func (e *echo) Write(p []byte) (int, error) {
	if len(p) < 5 || int(binary.BigEndian.Uint32(p)) != len(p)-4 || !passes[p[4]] {
		e.t.Fatalf("the agent heard %.40q", p)
	}
	e.answer.Write(failure)
	return len(p), nil
}

func (e *echo) Read(p []byte) (int, error) { return e.answer.Read(p) }
