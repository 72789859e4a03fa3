//go:build linux

package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
)

// udpPair is a connected pair of UDP sockets.
func udpPair(t *testing.T) (a, b *net.UDPConn) {
	t.Helper()
	first, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	b, err = net.DialUDP("udp4", nil, first.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	address := first.LocalAddr().(*net.UDPAddr)
	first.Close()
	a, err = net.DialUDP("udp4", address, b.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []*net.UDPConn{a, b} {
		t.Cleanup(func() { c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	}
	return a, b
}

func TestDatagrams(t *testing.T) {
	host, stream := pair(t)
	socket, container := udpPair(t)
	_ = socket.SetDeadline(time.Time{})
	result := make(chan error, 1)
	go func() { result <- Datagrams(t.Context(), stream, socket) }()
	in, buf := bufio.NewReader(host), make([]byte, api.MaxDatagram)
	for _, n := range []int{0, 1, 1400, 40_000, api.MaxDatagram} {
		want := bytes.Repeat([]byte{byte(n), 7}, n)[:n]
		if err := api.WriteDatagram(host, want); err != nil {
			t.Fatal(err)
		}
		k, err := container.Read(buf)
		if err != nil || !bytes.Equal(buf[:k], want) {
			t.Fatalf("%d bytes: container read %d, %v", n, k, err)
		}
		if _, err := container.Write(want); err != nil {
			t.Fatal(err)
		}
		if k, err = api.ReadDatagram(in, buf); err != nil || !bytes.Equal(buf[:k], want) {
			t.Fatalf("%d bytes: host read %d, %v", n, k, err)
		}
	}
	host.Close()
	if err := <-result; !errors.Is(err, io.EOF) {
		t.Errorf("Datagrams() = %v", err)
	}
	if _, err := socket.Write(nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the socket is still open: %v", err)
	}
}

// A container that does not listen yet loses datagrams, and not its flow.
func TestDatagramsToNobody(t *testing.T) {
	host, stream := pair(t)
	socket, container := udpPair(t)
	_ = socket.SetDeadline(time.Time{})
	address := container.LocalAddr().(*net.UDPAddr)
	container.Close()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- Datagrams(ctx, stream, socket) }()
	for range 20 {
		if err := api.WriteDatagram(host, []byte("lost")); err != nil {
			t.Fatal(err)
		}
	}
	again, err := net.DialUDP("udp4", address, socket.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	_ = again.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 10)
	for string(buf[:4]) != "here" {
		if err := api.WriteDatagram(host, []byte("here")); err != nil {
			t.Fatal(err)
		}
		if _, err := again.Read(buf); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("Datagrams() = %v", err)
	}
}

// breaker is a Conn that can be broken off.
type breaker struct {
	*net.UnixConn
	peerBroke bool
	broken    chan struct{}
}

func (b *breaker) Broken() bool { return b.peerBroke }

func (b *breaker) Break() {
	select {
	case <-b.broken:
	default:
		close(b.broken)
	}
	b.Close()
}

func TestPipePassesBreaks(t *testing.T) {
	for _, tt := range []struct {
		name   string
		broke  bool // the peer of a broke off
		refuse bool // the peer of b takes no more
		want   bool // b is broken off in turn
	}{{"an end", false, false, false}, {"a break", true, false, true}, {"a refusal", false, true, true}} {
		t.Run(tt.name, func(t *testing.T) {
			client, x := pair(t)
			y, engine := pair(t)
			a := &breaker{x, tt.broke, make(chan struct{})}
			b := &breaker{y, false, make(chan struct{})}
			result := make(chan error, 1)
			go func() { result <- Pipe(t.Context(), a, b) }()
			if tt.refuse {
				engine.Close()
				for {
					if _, err := client.Write([]byte("x")); err != nil {
						break
					}
				}
			}
			client.Close()
			if !tt.refuse {
				_, _ = io.ReadAll(engine)
				engine.Close()
			}
			err := <-result
			select {
			case <-b.broken:
				if !tt.want || err == nil {
					t.Errorf("it was broken off, and Pipe() = %v", err)
				}
			default:
				if tt.want || err != nil {
					t.Errorf("it was not broken off, and Pipe() = %v", err)
				}
			}
		})
	}
}
