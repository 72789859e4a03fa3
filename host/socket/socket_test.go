//go:build !windows

package socket_test

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-engine/coracle/host/socket"
)

// short is a directory whose sockets' paths fit everywhere.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := socket.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestListenAndDial(t *testing.T) {
	path := filepath.Join(short(t), "sock")
	l := listen(t, path)
	st, err := os.Lstat(path)
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	c, err := socket.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "there and back"); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(c); err != nil || string(got) != "there and back" {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestStale: whatever a killed process left is no hindrance.
func TestStale(t *testing.T) {
	path := filepath.Join(short(t), "sock")
	for _, left := range []string{path, path + "~"} {
		old, err := net.ListenUnix("unix", &net.UnixAddr{Name: left})
		if err != nil {
			t.Fatal(err)
		}
		old.SetUnlinkOnClose(false)
		old.Close()
	}
	listen(t, path)
	c, err := socket.Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestClose(t *testing.T) {
	path := filepath.Join(short(t), "sock")
	old := listen(t, path)
	old.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	listen(t, path)
	old.Close() // once more: the name belongs to another by now
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("closing twice removed another's socket: %v", err)
	}
}

func TestBadPath(t *testing.T) {
	dir := short(t)
	long := filepath.Join(dir, strings.Repeat("x", 110))
	if _, err := socket.Listen(long); !errors.Is(err, socket.ErrTooLong) {
		t.Errorf("listen: %v", err)
	}
	if _, err := socket.Dial(t.Context(), long); !errors.Is(err, socket.ErrTooLong) {
		t.Errorf("dial: %v", err)
	}
	if _, err := socket.Dial(t.Context(), filepath.Join(dir, "nobody")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dial nobody: %v", err)
	}
	full := filepath.Join(dir, "full")
	if err := os.MkdirAll(filepath.Join(full, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if l, err := socket.Listen(full); err == nil {
		l.Close()
		t.Error("took the place of a directory")
	}
	if _, err := os.Lstat(full + "~"); err == nil {
		t.Error("a socket was left behind")
	}
}
