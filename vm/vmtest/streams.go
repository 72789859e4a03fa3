package vmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm"
)

// bulk is what one stream carries in the tests: many times every buffer on its way.
const bulk = 8 << 20

// opener makes a stream on whose far end the guest behaves as on one of its ports.
type opener func(t *testing.T, behave uint32) net.Conn

// streams boots one machine and tries everything that a stream must do, on those that the host opened and on those that
// the guest opened.
func (s Subject) streams(t *testing.T) {
	m, _ := s.boot(t)
	t.Run("refused", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := m.Dial(ctx, PortNobody)
		want(t, "dial a port that nobody listens on", err, vm.ErrRefused)
		if err := callGuest(m, Call{PortNobody, PortEcho}); err == nil {
			t.Error("guest dialled a port of the host that nobody listens on: no error")
		}
	})
	for name, open := range map[string]opener{
		"dialled": func(t *testing.T, behave uint32) net.Conn { return dial(t, m, behave) },
		"accepted": func(t *testing.T, behave uint32) net.Conn {
			return accept(t, m, behave)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Run("half-close of the host", func(t *testing.T) { hostHalfClose(t, open) })
			t.Run("half-close of the guest", func(t *testing.T) { guestHalfClose(t, m, open) })
			t.Run("source", func(t *testing.T) { readSource(t, open) })
			t.Run("deadlines", func(t *testing.T) { deadlines(t, open) })
			t.Run("close in the middle", func(t *testing.T) { closeInTheMiddle(t, open) })
		})
	}
	t.Run("100 at once", func(t *testing.T) { many(t, m, 100) })
	t.Run("stop with streams open", func(t *testing.T) {
		l, c := listen(t, m, PortReport), dial(t, m, PortStall)
		if err := m.Stop(t.Context()); err != nil {
			t.Fatalf("stop: %v", err)
		}
		if err := m.Wait(); err != nil {
			t.Errorf("wait after stop: %v, want nil", err)
		}
		s.ended(t, m, l, c)
	})
}

// callGuest has the guest carry out call and returns why it could not.
func callGuest(m vm.Machine, call Call) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := m.Dial(ctx, PortCall)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if err := json.NewEncoder(c).Encode(call); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err == nil && string(answer) != "ok" {
		err = fmt.Errorf("guest says %q", answer)
	}
	return err
}

// accept has the guest open a stream to the host and returns the host's end.
func accept(t *testing.T, m vm.Machine, behave uint32) net.Conn {
	t.Helper()
	const port = 3000
	l := listen(t, m, port)
	defer l.Close()
	called := make(chan error, 1)
	go func() {
		err := callGuest(m, Call{port, behave})
		if err != nil {
			l.Close()
		}
		called <- err
	}()
	c, err := l.Accept()
	if callErr := within(t, "the guest to call back", called); err != nil || callErr != nil {
		t.Fatalf("accept: %v; call: %v", err, callErr)
	}
	t.Cleanup(func() { c.Close() })
	if _, ok := c.(vm.CloseWriter); !ok {
		t.Fatalf("accepted %T has no CloseWrite", c)
	}
	return c
}

// hostHalfClose sends bulk, ends its direction, and reads the guest's answer, which it gives after the end alone.
func hostHalfClose(t *testing.T, open opener) {
	c := open(t, PortSink)
	c.SetDeadline(time.Now().Add(time.Minute))
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(c, h), &Pattern{}, bulk); err != nil {
		t.Fatalf("send: %v", err)
	}
	if err := closeWrite(c); err != nil {
		t.Fatalf("close write: %v", err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("write after CloseWrite: no error")
	}
	checkSum(t, c, Sum{bulk, h.Sum(nil)})
}

// checkSum reads a Sum and the end-of-file after it.
func checkSum(t *testing.T, c io.Reader, want Sum) {
	t.Helper()
	answer, err := io.ReadAll(c)
	if err != nil {
		t.Fatalf("read the guest's sum: %v", err)
	}
	var got Sum
	if err := json.Unmarshal(answer, &got); err != nil {
		t.Fatalf("guest's sum is %q: %v", answer, err)
	}
	if got.Bytes != want.Bytes || !bytes.Equal(got.SHA256, want.SHA256) {
		t.Errorf("guest read %d bytes (SHA-256 %x), want %d (%x)", got.Bytes, got.SHA256, want.Bytes, want.SHA256)
	}
}

// guestHalfClose reads the guest's end-of-file first and then sends bulk in the direction that is left.
func guestHalfClose(t *testing.T, m vm.Machine, open opener) {
	report := listen(t, m, PortReport)
	defer report.Close()
	c := open(t, PortLate)
	c.SetDeadline(time.Now().Add(time.Minute))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Fatalf("read after the guest's half-close: %d bytes, error %v; want end-of-file", n, err)
	}
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(c, h), &Pattern{}, bulk); err != nil {
		t.Fatalf("send after the guest's half-close: %v", err)
	}
	if err := closeWrite(c); err != nil {
		t.Fatalf("close write: %v", err)
	}
	stop := time.AfterFunc(time.Minute, func() { report.Close() })
	defer stop.Stop()
	r, err := report.Accept()
	if err != nil {
		t.Fatalf("accept the guest's report: %v", err)
	}
	defer r.Close()
	r.SetDeadline(time.Now().Add(20 * time.Second))
	checkSum(t, r, Sum{bulk, h.Sum(nil)})
}

func ask(t *testing.T, c net.Conn, size uint64) {
	t.Helper()
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, size)); err != nil {
		t.Fatalf("ask the source: %v", err)
	}
}

func readSource(t *testing.T, open opener) {
	c := open(t, PortSource)
	c.SetDeadline(time.Now().Add(time.Minute))
	ask(t, c, bulk)
	got, want := sha256.New(), sha256.New()
	n, err := io.Copy(got, c)
	if err != nil || n != bulk {
		t.Fatalf("read %d bytes, error %v; want %d and end-of-file", n, err, bulk)
	}
	io.CopyN(want, &Pattern{}, bulk)
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Error("what the guest sent was changed on its way")
	}
}

func deadlines(t *testing.T, open opener) {
	c := open(t, PortEcho)
	timeout := func(what string, err error) {
		t.Helper()
		var ne net.Error
		if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &ne) || !ne.Timeout() {
			t.Errorf("%s: error %v, want os.ErrDeadlineExceeded as a net.Error with Timeout", what, err)
		}
	}
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := c.Read(make([]byte, 1))
	timeout("read past its deadline", err)
	c.SetDeadline(time.Time{})
	if err := ping(c); err != nil {
		t.Errorf("echo after a deadline was lifted: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	// A deadline that comes while Read waits.
	time.AfterFunc(20*time.Millisecond, func() { c.SetReadDeadline(time.Now()) })
	_, err = c.Read(make([]byte, 1))
	timeout("read whose deadline was moved while it waited", err)

	full := open(t, PortStall)
	full.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := io.Copy(full, io.LimitReader(&Pattern{}, 64<<20))
	timeout("write to a guest that does not read", err)
	t.Logf("a guest that does not read took %d bytes", n)
	c.SetDeadline(time.Time{})
	if err := ping(c); err != nil {
		t.Errorf("echo beside a stream that is full: %v", err)
	}
}

// closeInTheMiddle leaves with the guest still sending; the next stream must not notice.
func closeInTheMiddle(t *testing.T, open opener) {
	c := open(t, PortSource)
	c.SetDeadline(time.Now().Add(20 * time.Second))
	ask(t, c, 1<<40)
	if _, err := io.CopyN(io.Discard, c, 1<<20); err != nil {
		t.Fatalf("read: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("read after close: error %v, want net.ErrClosed", err)
	}
	if err := ping(open(t, PortEcho)); err != nil {
		t.Errorf("echo on the next stream: %v", err)
	}
}

// ping sends a few bytes through an echo and leaves the stream open.
func ping(c net.Conn) error {
	c.SetDeadline(time.Now().Add(20 * time.Second))
	defer c.SetDeadline(time.Time{})
	msg := []byte(rand.Text())
	if _, err := c.Write(msg); err != nil {
		return err
	}
	got := make([]byte, len(msg))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(got, msg) {
		return fmt.Errorf("echo of %q is %q", msg, got)
	}
	return nil
}

// many runs n echo streams at once, each with contents of its own.
func many(t *testing.T, m vm.Machine, n int) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	ended := make(chan error, n)
	for range n {
		go func() { ended <- roundTrip(ctx, m) }()
	}
	for range n {
		if err := <-ended; err != nil {
			t.Errorf("one of %d streams: %v", n, err)
		}
	}
}

func roundTrip(ctx context.Context, m vm.Machine) error {
	c, err := m.Dial(ctx, PortEcho)
	if err != nil {
		return err
	}
	defer c.Close()
	if d, ok := ctx.Deadline(); ok {
		c.SetDeadline(d)
	}
	msg := make([]byte, 64<<10)
	rand.Read(msg)
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(msg)
		sent <- errors.Join(err, closeWrite(c))
	}()
	got, err := io.ReadAll(c)
	if err = errors.Join(err, <-sent); err != nil {
		return err
	}
	if !bytes.Equal(got, msg) {
		return fmt.Errorf("echo of %d bytes came back as %d others", len(msg), len(got))
	}
	return nil
}
