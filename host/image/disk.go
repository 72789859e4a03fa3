package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/coracle-engine/coracle/host/api"
)

// minFree is how much room the host's disk must have for a start to make sense, in bytes.
const minFree = 256 << 20

// qcow2Magic begins an image that names other files to read: no data disk of ours, whoever put it there.
const qcow2Magic = "QFI\xfb"

// EnsureDisk makes path a raw data disk of size bytes: made sparse where there is none, grown where it is smaller. What is
// no plain raw file is refused, and so is a size below what the disk has, since the guest's file system is that large.
func EnsureDisk(path string, size int64) error {
	if free, err := freeSpace(filepath.Dir(path)); err == nil && free < minFree {
		return &api.Error{Code: api.CodeDiskFull, Message: fmt.Sprintf("only %d MiB are free on the disk of %s: the machine needs at least %d MiB to start", free>>20, path, minFree>>20), Hint: "free some space, then start again"}
	}
	switch st, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("look at data disk: %w", err)
	case !st.Mode().IsRegular():
		return badDisk("%s is no regular file, but %v", path, st.Mode().Type())
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|noFollow, 0o600)
	if err != nil {
		return fmt.Errorf("open data disk: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at data disk: %w", err)
	}
	head := make([]byte, len(qcow2Magic))
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read data disk: %w", err)
	}
	switch {
	case string(head) == qcow2Magic:
		return badDisk("%s is a qcow2 image: a data disk is raw", path)
	case st.Size() > size:
		return &api.Error{Code: api.CodeConfig, Message: fmt.Sprintf("a disk of %d MiB asked for: it has %d MiB already and cannot shrink", size>>20, st.Size()>>20), Hint: fmt.Sprintf("ask for at least %dMiB, or delete the machine and make a new one", st.Size()>>20)}
	case st.Size() == size:
		return nil
	}
	if err := f.Truncate(size); err != nil {
		return diskError("grow data disk", err)
	}
	return nil
}

func badDisk(format string, args ...any) error {
	return &api.Error{Code: api.CodeDataDisk, Message: fmt.Sprintf(format, args...), Hint: "move it away: the next start makes a new, empty one"}
}

// DiskUsed is what the disk at path takes on the host, in bytes; 0 where there is none.
func DiskUsed(path string) int64 {
	st, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	return usedOf(st)
}

// Free is how much an ordinary user can still write to the file system that dir is on, in bytes, and how much of it a start
// needs.
func Free(dir string) (free, needed int64, err error) {
	free, err = freeSpace(dir)
	return free, minFree, err
}
