//go:build !windows

package image

import (
	"errors"
	"io/fs"
	"syscall"
)

const noFollow = syscall.O_NOFOLLOW

// freeSpace is what an ordinary user can still write to dir's file system, in bytes.
func freeSpace(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), nil
}

func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// usedOf is what a file takes on the disk, in bytes: a sparse one takes less than its size.
func usedOf(st fs.FileInfo) int64 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512
	}
	return st.Size()
}
