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
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open lock: %w", err)
		}
		if err := acquire(ctx, f); err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if named(f, path) {
			return f, nil
		}
		f.Close() // its owner has removed it, with the machine: a lock on what nobody else finds protects nothing
	}
}

// named is whether path still leads to f.
func named(f *os.File, path string) bool {
	ours, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(ours, there)
}

// acquire locks f, or closes it.
func acquire(ctx context.Context, f *os.File) error {
	err := lockFile(f, false)
	if err == nil {
		return nil
	}
	if !isHeld(err) {
		f.Close()
		return err
	}
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
		}
		return err
	case <-ctx.Done():
		return ErrHeld
	}
}
