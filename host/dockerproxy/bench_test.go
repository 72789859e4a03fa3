package dockerproxy_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/coracle-engine/coracle/host/dockerproxy"
)

// echo answers each byte with itself.
func echo(c *net.UnixConn) { io.Copy(c, c) }

// ways runs a benchmark against an engine's own socket, against the same through the proxy, and through one that read the
// requests before: the differences are what the proxy costs.
func ways(b *testing.B, engine func(*net.UnixConn), run func(b *testing.B, dial func() (*net.UnixConn, error))) {
	direct, unread, upgraded := listenEngine(b, engine), start(b, engine), modes[1].start(b, engine)
	b.Run("direct", func(b *testing.B) { run(b, func() (*net.UnixConn, error) { return modes[0].dial(direct) }) })
	b.Run("unread", func(b *testing.B) { run(b, func() (*net.UnixConn, error) { return modes[0].dial(unread) }) })
	b.Run("upgraded", func(b *testing.B) { run(b, func() (*net.UnixConn, error) { return modes[1].dial(upgraded) }) })
}

// BenchmarkRoundTrip is one small message and its answer on an open stream.
func BenchmarkRoundTrip(b *testing.B) {
	ways(b, echo, func(b *testing.B, dial func() (*net.UnixConn, error)) {
		c, err := dial()
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 200)
		for b.Loop() {
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkConnect is a new stream for each message.
func BenchmarkConnect(b *testing.B) {
	ways(b, echo, func(b *testing.B, dial func() (*net.UnixConn, error)) {
		buf := make([]byte, 200)
		for b.Loop() {
			c, err := dial()
			if err != nil {
				b.Fatal(err)
			}
			if _, err := c.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
			c.Close()
		}
	})
}

// BenchmarkThroughput is a long answer.
func BenchmarkThroughput(b *testing.B) {
	const chunk = 1 << 20
	flood := func(c *net.UnixConn) {
		buf := make([]byte, chunk)
		for {
			if _, err := c.Write(buf); err != nil {
				return
			}
		}
	}
	ways(b, flood, func(b *testing.B, dial func() (*net.UnixConn, error)) {
		c, err := dial()
		if err != nil {
			b.Fatal(err)
		}
		buf := make([]byte, chunk)
		b.SetBytes(chunk)
		for b.Loop() {
			if _, err := io.ReadFull(c, buf); err != nil {
				b.Fatal(err)
			}
		}
		c.Close()
	})
}

// doors runs a benchmark of requests against a server, through a proxy that does not read them, and through one that does.
func doors(b *testing.B, run func(b *testing.B, path string)) {
	l, err := net.Listen("unix", b.TempDir()+"/s")
	if err != nil {
		b.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "OK")
	})}
	go server.Serve(l)
	b.Cleanup(func() { server.Close() })
	d := &dockerd{path: l.Addr().String()}
	shares := &dockerproxy.Shares{}
	shares.SetShares([]string{"/home"})
	b.Run("direct", func(b *testing.B) { run(b, d.path) })
	b.Run("unread", func(b *testing.B) { run(b, serve(b, d.dial)) })
	b.Run("read", func(b *testing.B) { run(b, servePolicy(b, shares, d.dial)) })
}

// BenchmarkRequest is one request and its answer on an open connection.
func BenchmarkRequest(b *testing.B) {
	for _, kind := range []struct{ name, text string }{
		{"ping", "GET /_ping HTTP/1.1\r\nHost: docker\r\nUser-Agent: Docker-Client/29.0.0 (linux)\r\n\r\n"},
		{"create", post("/v1.51/containers/create", `{"Image":"alpine","Labels":{"a":"b"},"HostConfig":{"Binds":["/home/x/y:/x"],`+
			`"Memory":0,"NetworkMode":"default"},"Env":["`+strings.Repeat("A=b\",\"", 100)+`"]}`)},
	} {
		b.Run(kind.name, func(b *testing.B) {
			doors(b, func(b *testing.B, path string) {
				c := connect(b, path)
				in := bufio.NewReader(c)
				for b.Loop() {
					io.WriteString(c, kind.text)
					resp, err := http.ReadResponse(in, nil)
					if err != nil || resp.StatusCode != 200 {
						b.Fatal(resp, err)
					}
					io.Copy(io.Discard, resp.Body)
				}
			})
		})
	}
}

// BenchmarkUpload is a body in chunks of 32 KiB, as Go's clients send a build's context or an image.
func BenchmarkUpload(b *testing.B) {
	const size, chunk = 64 << 20, 32 << 10
	doors(b, func(b *testing.B, path string) {
		client := clientOf(path)
		b.SetBytes(size)
		for b.Loop() {
			body := io.LimitReader(zeros{}, size)
			resp, err := client.Post("http://docker/images/load", "application/x-tar", struct{ io.Reader }{bufio.NewReaderSize(body, chunk)})
			if err != nil || resp.StatusCode != 200 {
				b.Fatal(resp, err)
			}
			resp.Body.Close()
		}
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
