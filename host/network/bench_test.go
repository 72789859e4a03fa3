package network

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// The benchmarks have a guest that is a second stack in this process: what they show is what this room and the cable cost, and
// as much again for the guest's side.

var mtus = []int{1500, 4000, 16000, 65520}

func BenchmarkToHost(b *testing.B) {
	for _, mtu := range mtus {
		b.Run(fmt.Sprint(mtu), func(b *testing.B) {
			g := newGuest(b, Config{Loopback: true, MTU: mtu})
			got := make(chan int64, 1)
			c := g.mustDial(g.host(serve(b, func(c *net.TCPConn) {
				n, _ := io.Copy(io.Discard, c)
				got <- n
			})))
			block := make([]byte, 1<<20)
			b.SetBytes(int64(len(block)))
			b.ResetTimer()
			for range b.N {
				c.Write(block)
			}
			c.CloseWrite()
			if n := <-got; n != int64(b.N)*int64(len(block)) {
				b.Errorf("%d bytes came", n)
			}
		})
	}
}

func BenchmarkFromHost(b *testing.B) {
	for _, mtu := range mtus {
		b.Run(fmt.Sprint(mtu), func(b *testing.B) {
			g := newGuest(b, Config{Loopback: true, MTU: mtu})
			block := make([]byte, 1<<20)
			c := g.mustDial(g.host(serve(b, func(c *net.TCPConn) {
				io.ReadFull(c, make([]byte, 1))
				for range b.N {
					c.Write(block)
				}
			})))
			b.SetBytes(int64(len(block)))
			b.ResetTimer()
			c.Write([]byte("x"))
			if n, err := io.Copy(io.Discard, c); n != int64(b.N)*int64(len(block)) {
				b.Errorf("%d bytes came: %v", n, err)
			}
		})
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	g := newGuest(b, Config{Loopback: true})
	c := g.mustDial(g.host(serve(b, echo)))
	one := make([]byte, 1)
	for b.Loop() {
		c.Write(one)
		if _, err := io.ReadFull(c, one); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkConnect(b *testing.B) {
	g := newGuest(b, Config{Loopback: true})
	at := g.host(serve(b, echo))
	for b.Loop() {
		c, err := g.dial(at)
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// BenchmarkThousand has a thousand connections at once, each carrying 64 KiB there and back.
func BenchmarkThousand(b *testing.B) {
	const streams, size = 1000, 64 << 10
	g := newGuest(b, Config{Loopback: true})
	at := g.host(serve(b, echo))
	b.SetBytes(2 * streams * size)
	for b.Loop() {
		var all sync.WaitGroup
		for i := range streams {
			all.Go(func() {
				if err := sendAndCompare(g, at, byte(i), size); err != nil {
					b.Error(err)
				}
			})
		}
		all.Wait()
	}
}

func BenchmarkDatagram(b *testing.B) {
	g := newGuest(b, Config{Loopback: true})
	c := g.dialUDP(g.host(udpEcho(b, "127.0.0.1:0")))
	buf := make([]byte, 1200)
	for b.Loop() {
		c.SetDeadline(time.Now().Add(time.Second))
		c.Write(buf)
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}
