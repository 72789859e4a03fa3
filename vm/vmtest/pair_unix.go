//go:build unix

package vmtest

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// pair is two ends of one stream, each with CloseWrite.
func pair() (net.Conn, net.Conn, error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	a, errA := conn(fds[0])
	b, errB := conn(fds[1])
	if errA != nil || errB != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w, %w", errA, errB)
	}
	return a, b, nil
}

func conn(fd int) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "pair")
	defer f.Close() // net.FileConn duplicates it
	return net.FileConn(f)
}
