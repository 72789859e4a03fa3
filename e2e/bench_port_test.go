//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkPort measures a published port as a program on the host sees it: docker run -p, a container's server behind it.
// (vm/qemu has the comparison with QEMU's own forwarding, whose network this machine does not have.)
func BenchmarkPort(b *testing.B) {
	needVM(b)
	u := newUser(b)
	u.ok(b, "coracle", "start")
	u.toolboxImage(b)
	port := freePort(b)
	u.listening(b, u.publish(b, []string{"-p", port + ":7"}, "busy", "7"))
	address := net.JoinHostPort("127.0.0.1", port)
	const bulk = 64 << 20
	for _, m := range []struct {
		name  string
		bytes int64
		run   func() error
	}{
		{"Connect", 0, func() error { return ask(address, "e?", "?") }},
		{"Crowd", 0, func() error { return crowd(address) }},
		{"ToContainer", bulk, func() error { return push(address, bulk) }},
		{"FromContainer", bulk, func() error { return pull(address, bulk) }},
	} {
		b.Run(m.name, func(b *testing.B) {
			b.SetBytes(m.bytes)
			for b.Loop() {
				if err := m.run(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(load(), "load")
		})
	}
	b.Run("RoundTrip", func(b *testing.B) {
		c, err := call(address, "e")
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		p := []byte{'?'}
		for b.Loop() {
			if _, err := c.Write(p); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(c, p); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(load(), "load")
	})
}

// call connects to the toolbox's verb busy and says what is wanted of it.
func call(address, text string) (*net.TCPConn, error) {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, text); err != nil {
		c.Close()
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// ask opens a connection, says text, and wants an answer.
func ask(address, text, want string) error {
	c, err := call(address, text)
	if err != nil {
		return err
	}
	defer c.Close()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		return fmt.Errorf("answer %q, %v", got, err)
	}
	return nil
}

// crowd is 50 clients that at once connect 10 times each. Each is answered.
func crowd(address string) error {
	errs := make([]error, 50)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for range 10 {
				errs[i] = errors.Join(errs[i], ask(address, "e?", "?"))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// push sends n bytes and has the container say that they came.
func push(address string, n int64) error {
	c, err := call(address, "s")
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := io.Copy(c, io.LimitReader(zeros{}, n)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	said, err := io.ReadAll(c)
	if err != nil || strings.TrimSpace(string(said)) != fmt.Sprint(n) {
		return fmt.Errorf("container got %q bytes, %v; want %d", said, err, n)
	}
	return nil
}

// pull reads n bytes from the container.
func pull(address string, n int64) error {
	c, err := call(address, fmt.Sprintf("z%d\n", n))
	if err != nil {
		return err
	}
	defer c.Close()
	got, err := io.Copy(io.Discard, c)
	if err == nil && got != n {
		err = fmt.Errorf("%d bytes came, want %d", got, n)
	}
	return err
}

// zeros is an endless stream of them.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
