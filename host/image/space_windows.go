package image

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/windows"
)

const noFollow = 0

// freeSpace is what this user can still write to dir's volume, in bytes.
func freeSpace(dir string) (int64, error) {
	name, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(name, &free, nil, nil); err != nil {
		return 0, err
	}
	return int64(free), nil
}

func isNoSpace(err error) bool {
	return errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL)
}

// usedOf is a file's size: how sparse it is needs a handle.
func usedOf(st fs.FileInfo) int64 { return st.Size() }
