//go:build linux

package agent

import (
	"fmt"
	"os"

	"github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/sys/unix"
)

// openPTY makes a pseudo-terminal. The caller closes both ends.
func openPTY(size api.Size) (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	raw, err := master.SyscallConn()
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	var fd uintptr
	errno := unix.Errno(0)
	err = raw.Control(func(m uintptr) {
		if err := unix.IoctlSetPointerInt(int(m), unix.TIOCSPTLCK, 0); err != nil {
			errno = err.(unix.Errno)
			return
		}
		fd, _, errno = unix.Syscall(unix.SYS_IOCTL, m, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	if err := resize(master, size); err != nil {
		unix.Close(int(fd))
		master.Close()
		return nil, nil, err
	}
	return master, os.NewFile(fd, "pty"), nil
}

// resize tells the terminal its size; zero leaves it.
func resize(master *os.File, size api.Size) error {
	if size.Rows == 0 && size.Cols == 0 {
		return nil
	}
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	err = raw.Control(func(m uintptr) {
		ierr = unix.IoctlSetWinsize(int(m), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	if err == nil {
		err = ierr
	}
	if err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}
