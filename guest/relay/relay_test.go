//go:build linux

package relay

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair is a connected pair of stream sockets.
func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

// joined is a Pipe between two pairs: what the client and the engine hold, and what Pipe returned.
func joined(t *testing.T, ctx context.Context) (client, engine *net.UnixConn, result <-chan error) {
	t.Helper()
	client, a := pair(t)
	b, engine := pair(t)
	done := make(chan error, 1)
	go func() { done <- Pipe(ctx, a, b) }()
	return client, engine, done
}

// plain hides that a connection has a file descriptor.
type plain struct{ Conn }

func TestPipeHalfClose(t *testing.T) {
	client, engine, result := joined(t, t.Context())
	if _, err := client.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	if err := client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(engine); err != nil || string(got) != "question" {
		t.Fatalf("engine read %q, %v", got, err)
	}
	select {
	case err := <-result:
		t.Fatalf("Pipe ended with one direction open: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := engine.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	if err := engine.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(client); err != nil || string(got) != "answer" {
		t.Fatalf("client read %q, %v", got, err)
	}
	if err := <-result; err != nil {
		t.Errorf("Pipe() = %v", err)
	}
}

func TestPipeIsByteExact(t *testing.T) {
	for name, wrap := range map[string]func(Conn) Conn{
		"descriptors": func(c Conn) Conn { return c },
		"plain":       func(c Conn) Conn { return plain{c} },
	} {
		t.Run(name, func(t *testing.T) {
			client, a := pair(t)
			b, engine := pair(t)
			result := make(chan error, 1)
			go func() { result <- Pipe(t.Context(), wrap(a), wrap(b)) }()
			var wg sync.WaitGroup
			ends := []*net.UnixConn{client, engine}
			for i := range ends {
				data := make([]byte, 3<<20+i)
				rng := rand.New(rand.NewPCG(1, uint64(i)))
				for j := range data {
					data[j] = byte(rng.Uint32())
				}
				wg.Go(func() {
					for rest := data; len(rest) > 0; {
						n := min(1+rng.IntN(200_000), len(rest))
						if _, err := ends[i].Write(rest[:n]); err != nil {
							t.Error(err)
							return
						}
						rest = rest[n:]
					}
					if err := ends[i].CloseWrite(); err != nil {
						t.Error(err)
					}
				})
				wg.Go(func() {
					h := sha256.New()
					if _, err := io.Copy(h, ends[1-i]); err != nil {
						t.Error(err)
					}
					if want := sha256.Sum256(data); !bytes.Equal(h.Sum(nil), want[:]) {
						t.Error("what arrived differs from what was sent")
					}
				})
			}
			wg.Wait()
			if err := <-result; err != nil {
				t.Errorf("Pipe() = %v", err)
			}
		})
	}
}

func TestPipeDoesNotHoldBytesBack(t *testing.T) {
	client, engine, _ := joined(t, t.Context())
	buf := make([]byte, 1)
	for i := range 100 {
		if _, err := client.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(engine, buf); err != nil || buf[0] != byte(i) {
			t.Fatalf("byte %d: %d, %v", i, buf[0], err)
		}
	}
}

func TestPipeKeepsAnswerOfPeerThatStopsReading(t *testing.T) {
	client, engine, result := joined(t, t.Context())
	if err := engine.CloseRead(); err != nil { // as one that refuses an upload in its middle
		t.Fatal(err)
	}
	go func() {
		for {
			if _, err := client.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	}()
	time.Sleep(50 * time.Millisecond)
	if _, err := engine.Write([]byte("413")); err != nil {
		t.Fatal(err)
	}
	if err := engine.Close(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 3)
	if _, err := io.ReadFull(client, got); err != nil || string(got) != "413" {
		t.Errorf("client read %q, %v", got, err)
	}
	client.Close()
	<-result
}

func TestPipeEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	client, engine, result := joined(t, ctx)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("Pipe() = %v", err)
	}
	for _, c := range []net.Conn{client, engine} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("read after the end: %v", err)
		}
	}
}

func TestRefuse(t *testing.T) {
	for name, request := range map[string]string{
		"get":  "GET /v1.50/info HTTP/1.1\r\nHost: d\r\n\r\n",
		"head": "HEAD /_ping HTTP/1.1\r\nHost: d\r\n\r\n",
		"post": "POST /build HTTP/1.1\r\nHost: d\r\nContent-Length: 1000000\r\n\r\n" + strings.Repeat("x", 100_000),
	} {
		t.Run(name, func(t *testing.T) {
			client, server := pair(t)
			done := make(chan error, 1)
			go func() { done <- Refuse(server, `not "up"`) }()
			go func() { _, _ = io.WriteString(client, request) }()
			method, _, _ := strings.Cut(request, " ")
			answer, err := io.ReadAll(client)
			if err != nil {
				t.Fatal(err)
			}
			req, _ := http.NewRequestWithContext(t.Context(), method, "http://d/", nil)
			resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Content-Type") != "application/json" {
				t.Errorf("answer is %s, %v", resp.Status, resp.Header)
			}
			if method != http.MethodHead {
				var body struct{ Message string }
				if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || body.Message != `not "up"` {
					t.Errorf("body is %+v, %v", body, err)
				}
			}
			client.Close()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("no request", func(t *testing.T) {
		client, server := pair(t)
		client.Close()
		if err := Refuse(server, "x"); err == nil {
			t.Error("refused what never asked")
		}
	})
}

func BenchmarkPipe(b *testing.B) {
	client, x := pair(b)
	y, engine := pair(b)
	go func() { _ = Pipe(b.Context(), x, y) }()
	go func() { _, _ = io.Copy(io.Discard, engine) }()
	buf := make([]byte, 256<<10)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := client.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
}
