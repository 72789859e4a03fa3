//go:build linux

package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

func TestSSHAgent(t *testing.T) {
	host := listen(t)
	var refuse atomic.Bool
	s := &sshAgent{path: filepath.Join(t.TempDir(), "host-services", "agent.sock"), log: quiet, dial: func(ctx context.Context) (net.Conn, error) {
		if refuse.Load() {
			return nil, errors.New("nobody listens")
		}
		return (&net.Dialer{}).DialContext(ctx, "unix", host.Addr().String())
	}}
	for range 2 {
		if err := s.set(true); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(s.path); err != nil || st.Mode().Perm() != 0o666 {
		t.Errorf("the socket is %v, %v: want it open to all", st, err)
	}
	call := func() *net.UnixConn {
		conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: s.path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	conn := call()
	if _, err := conn.Write([]byte("ask")); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	far, err := host.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(far); string(got) != "ask" || err != nil {
		t.Errorf("the host got %q, %v", got, err)
	}
	if _, err := far.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	far.Close()
	if got, err := io.ReadAll(conn); string(got) != "answer" || err != nil {
		t.Errorf("the container got %q, %v", got, err)
	}

	refuse.Store(true)
	if n, err := call().Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("with a host that does not listen: %d, %v", n, err)
	}
	refuse.Store(false)
	open := call()
	if _, err := open.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := s.set(false); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(open); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a connection outlives the socket")
	}
	if _, err := os.Stat(s.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	if err := s.set(true); err != nil {
		t.Errorf("make it again: %v", err)
	}
	if err := s.set(false); err != nil {
		t.Error(err)
	}
}
