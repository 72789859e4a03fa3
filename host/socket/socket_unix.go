//go:build !windows

package socket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
)

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	if err := checkLen(path); err != nil {
		return nil, err
	}
	var d net.Dialer
	return d.DialContext(ctx, "unix", path)
}

// Listen makes a socket at path that only this user may connect to (mode 0600), in the place of whatever was there before:
// the caller must own the name, by a lock. It is complete when it appears under its name. Close removes it.
func Listen(path string) (net.Listener, error) {
	tmp := path + "~" // one byte more, so that what fits under its own name nearly always fits here
	if err := checkLen(tmp); err != nil {
		return nil, err
	}
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(tmp, 0o600), os.Rename(tmp, path)); err != nil {
		l.Close()
		os.Remove(tmp)
		return nil, fmt.Errorf("place socket: %w", err)
	}
	return &listener{UnixListener: l, path: path}, nil
}

type listener struct {
	*net.UnixListener
	path string
	once sync.Once
}

// Close removes the name first, so that nobody connects to a socket that no longer answers.
func (l *listener) Close() error {
	l.once.Do(func() { os.Remove(l.path) })
	return l.UnixListener.Close()
}
