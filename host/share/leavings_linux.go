package share

import (
	"sync"

	"golang.org/x/sys/unix"
)

// leavings are files whose last name the guest took away, held by descriptors that do not let the host free their space yet:
// that can take a millisecond and more, and for big files very long, in which the guest need not wait. They are closed by a
// goroutine of their own, in order.
type leavings struct {
	fds  chan int
	done sync.WaitGroup
	once sync.Once // for closing fds
}

// maxLeavings is how many wait; who brings one more frees it himself.
const maxLeavings = 256

func (l *leavings) start() {
	l.fds = make(chan int, maxLeavings)
	l.done.Go(func() {
		for fd := range l.fds {
			unix.Close(fd)
		}
	})
}

// stop frees what waits. No hold follows.
func (l *leavings) stop() {
	l.once.Do(func() { close(l.fds) })
	l.done.Wait()
}

// hold opens name in the directory fd, which is a, if it is a file's last name; else it returns -1.
func (l *leavings) hold(fd int, name string, a *attrs) int {
	if a.kind() != unix.S_IFREG || a.nlink > 1 || a.blocks == 0 {
		return -1
	}
	held, err := openBeneath(fd, name, unix.O_PATH, 0)
	if err != nil {
		return -1
	}
	return held
}

// drop takes over what hold returned.
func (l *leavings) drop(fd int) {
	if fd < 0 {
		return
	}
	select {
	case l.fds <- fd:
	default:
		unix.Close(fd)
	}
}
