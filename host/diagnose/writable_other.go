//go:build !windows

package diagnose

import "golang.org/x/sys/unix"

// writable asks the system, without leaving a trace.
func writable(dir string) error { return unix.Access(dir, unix.W_OK|unix.X_OK) }
