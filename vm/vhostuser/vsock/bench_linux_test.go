package vsock

import (
	"io"
	"testing"
)

func BenchmarkRoundTrip(b *testing.B) {
	d := newDevice(b)
	g := boot(b, d)
	g.serve(echoPort, echoServer)
	c := dial(b, d, echoPort)
	p := make([]byte, 1)
	for b.Loop() {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkToGuest(b *testing.B) {
	d := newDevice(b)
	g := boot(b, d)
	g.serve(1, func(s *socket) { io.Copy(io.Discard, struct{ io.Reader }{s}) })
	c := dial(b, d, 1)
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFromGuest(b *testing.B) {
	d := newDevice(b)
	l, err := d.Listen(hostPort)
	if err != nil {
		b.Fatal(err)
	}
	g := boot(b, d)
	s, err := g.dial(hostPort)
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		p := make([]byte, 64<<10)
		for {
			if _, err := s.Write(p); err != nil {
				return
			}
		}
	}()
	c, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if _, err := io.ReadFull(c, p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDial(b *testing.B) {
	d := newDevice(b)
	g := boot(b, d)
	g.serve(1, func(s *socket) { s.Close() })
	for b.Loop() {
		c := dial(b, d, 1)
		if _, err := io.ReadAll(c); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}
