//go:build linux

package boot

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Uevents tells that the kernel's devices changed (man 7 netlink, NETLINK_KOBJECT_UEVENT). It does not say how: who waits
// looks again.
type Uevents struct {
	file *os.File
	done chan struct{}

	mu      sync.Mutex
	changed chan struct{}
}

// ListenUevents begins to listen. The caller closes it.
func ListenUevents() (*Uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen for device events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listen for device events: %w", err)
	}
	u := &Uevents{file: os.NewFile(uintptr(fd), "uevents"), done: make(chan struct{}), changed: make(chan struct{})}
	go u.run()
	return u, nil
}

func (u *Uevents) run() {
	defer close(u.done)
	for buf := make([]byte, 8<<10); ; {
		_, err := u.file.Read(buf)
		if err != nil && !errors.Is(err, unix.ENOBUFS) { // some were lost: something changed all the same
			return
		}
		u.mu.Lock()
		close(u.changed)
		u.changed = make(chan struct{})
		u.mu.Unlock()
	}
}

// Changed returns a channel that is closed at the next event. Take it before looking, so that nothing falls between.
func (u *Uevents) Changed() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.changed
}

// Close ends the listening; channels from Changed stay open.
func (u *Uevents) Close() {
	u.file.Close()
	<-u.done
}
