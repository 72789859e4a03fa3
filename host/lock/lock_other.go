//go:build !windows

package lock

import (
	"os"
	"syscall"
)

const noFollow = syscall.O_NOFOLLOW | syscall.O_CLOEXEC

// lockFile uses flock and not fcntl: the lock belongs to the open file, so that a child can keep it.
func lockFile(f *os.File, wait bool) error {
	how := syscall.LOCK_EX
	if !wait {
		how |= syscall.LOCK_NB
	}
	for {
		if err := syscall.Flock(int(f.Fd()), how); err != syscall.EINTR {
			return err
		}
	}
}

func isHeld(err error) bool { return err == syscall.EWOULDBLOCK }
