//go:build !windows

package main

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// dropInherited closes every descriptor beyond standard error that whoever started us left open for us: a script's lock or
// a test runner's pipe would be held by this process, and by its hypervisor, for as long as the machine runs. What this
// process opened itself is marked to be closed at exec, which tells it from what came through one.
func dropInherited() {
	entries, err := os.ReadDir("/dev/fd")
	if err != nil {
		return
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < 3 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			_ = unix.Close(fd)
		}
	}
}
