// Package lock says who owns a machine: whoever holds the lock on its lock file. The kernel drops it with the last process
// that has the file open, so a crash leaves nothing to clean up; a hypervisor that inherits the file keeps the lock for as
// long as it can still write to the machine's disk. Its user is the host process.
package lock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// ErrHeld says that another process has the lock and kept it.
var ErrHeld = errors.New("lock is held by another process")

// Take locks the file at path, which it makes where there is none, waiting for up to wait. The lock ends with the last
// descriptor of the file, here or in a child that inherited it. After ErrHeld a goroutine may stay behind until the lock
// is free: the caller is expected to end soon.
func Take(ctx context.Context, path string, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := lockFile(f, false); err == nil {
		return f, nil
	} else if !isHeld(err) {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	got := make(chan error)
	go func() { // the kernel wakes it: nothing here asks again and again
		err := lockFile(f, true)
		select {
		case got <- err:
		case <-ctx.Done():
			f.Close()
		}
	}()
	select {
	case err := <-got:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return f, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("lock %s: %w", path, ErrHeld)
	}
}
