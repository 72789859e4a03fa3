package image

import (
	"io/fs"
	"syscall"
)

// changeOf is a file's inode change time, in nanoseconds, and inode number.
func changeOf(st fs.FileInfo) (int64, uint64) {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return s.Ctim.Nano(), s.Ino
	}
	return 0, 0
}
