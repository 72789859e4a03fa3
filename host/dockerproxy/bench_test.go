package dockerproxy_test

import (
	"io"
	"net"
	"testing"
)

// echo answers each byte with itself.
func echo(c *net.UnixConn) { io.Copy(c, c) }

// ways runs a benchmark against an engine's own socket, and against the same through the proxy: the difference is what the
// proxy costs.
func ways(b *testing.B, engine func(*net.UnixConn), run func(b *testing.B, path string)) {
	b.Run("direct", func(b *testing.B) { run(b, listenEngine(b, engine)) })
	b.Run("proxy", func(b *testing.B) { run(b, start(b, engine)) })
}

// BenchmarkRoundTrip is one small request and its answer on an open stream.
func BenchmarkRoundTrip(b *testing.B) {
	ways(b, echo, func(b *testing.B, path string) {
		c := connect(b, path)
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

// BenchmarkConnect is a new stream for each request, as the docker CLI has.
func BenchmarkConnect(b *testing.B) {
	ways(b, echo, func(b *testing.B, path string) {
		buf := make([]byte, 200)
		for b.Loop() {
			c, err := net.Dial("unix", path)
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
	ways(b, flood, func(b *testing.B, path string) {
		c := connect(b, path)
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
