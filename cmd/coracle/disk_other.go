//go:build !windows

package main

import (
	"os"
	"syscall"
)

// diskUsed is what the sparse file at path takes on this computer, in bytes; 0 where there is none.
func diskUsed(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return st.Size()
	}
	return sys.Blocks * 512 // stat(2): in blocks of 512 bytes, whatever the file system's
}
