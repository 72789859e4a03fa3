//go:build linux

package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DataDir is where the data disk is mounted.
const DataDir = "/data"

// Exec runs a program to its end and fails unless its exit status is one of ok.
type Exec func(ctx context.Context, ok []int, path string, args ...string) error

// Data makes the disk's file system what it should be and mounts it at DataDir: a blank disk is formatted, one with errors
// is checked, one that has grown is filled, and one that holds something else is refused and left as it is.
func Data(ctx context.Context, log *slog.Logger, run Exec, device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open data disk: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("measure data disk: %w", err)
	}
	content, sb, err := Inspect(f, size)
	if err != nil {
		return fmt.Errorf("inspect data disk: %w", err)
	}
	switch content {
	case Foreign:
		return errors.New("data disk holds something that is not coracle's file system: it is left as it is; delete or move the machine's data.img to begin with an empty one")
	case Blank, Unfinished:
		log.Info("formatting the data disk", "bytes", size, "again", content == Unfinished)
		if err := format(ctx, run, f, device, size, content == Blank); err != nil {
			return err
		}
		sb.Blocks = 0 // fills the disk
	case Ext4:
		if sb.Size() > size {
			return fmt.Errorf("data disk has %d bytes and its file system %d: the machine's data.img was cut short; make it as long as it was", size, sb.Size())
		}
		if sb.Errors {
			log.Warn("checking the data disk: its file system has noted errors")
			// 1: errors were corrected (man 8 e2fsck, exit code).
			if err := run(ctx, []int{0, 1}, "/usr/sbin/e2fsck", "-p", device); err != nil {
				return fmt.Errorf("check data disk: %w", err)
			}
		}
	}
	if err := mountData(device); err != nil {
		return err
	}
	if sb.Blocks != 0 && size-sb.Size() >= 1<<20 {
		if err := grow(log, sb, size); err != nil {
			log.Error("the data disk has grown and its file system has not", "err", err)
		}
	}
	return nil
}

// format makes an ext4 file system that costs little to make and little of a sparse file: tables are written when they are
// first used, and the journal is small.
func format(ctx context.Context, run Exec, f *os.File, device string, size int64, zero bool) error {
	mark := make([]byte, markSize)
	copy(mark, formatMark)
	if err := writeMark(f, size, mark); err != nil {
		return err
	}
	// Without a resize inode mke2fs writes 50 blocks where it else writes a thousand; the kernel grows without it too.
	extended := "lazy_itable_init=1,lazy_journal_init=1,nodiscard"
	if zero {
		extended += ",assume_storage_prezeroed=1"
	}
	args := []string{"-q", "-F", "-t", "ext4", "-b", "4096", "-L", "coracle-data", "-m", "0",
		"-O", "^resize_inode", "-G", "128", "-E", extended}
	if size >= 4<<30 {
		args = append(args, "-J", "size=64") // MiB; a small disk's is smaller of itself
	}
	if err := run(ctx, []int{0}, "/usr/sbin/mke2fs", append(args, device)...); err != nil {
		return fmt.Errorf("format data disk: %w", err)
	}
	return writeMark(f, size, make([]byte, markSize))
}

func writeMark(f *os.File, size int64, block []byte) error {
	if _, err := f.WriteAt(block, size-markSize); err != nil {
		return fmt.Errorf("mark data disk: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("mark data disk: %w", err)
	}
	return nil
}

func mountData(device string) error {
	var flags uintptr = unix.MS_NOATIME | unix.MS_NODEV
	var err error
	// Discard gives deleted data's space back to the host; noinit_itable keeps the kernel from writing all tables out.
	for _, options := range []string{"discard,noinit_itable,errors=remount-ro", "noinit_itable"} {
		if err = unix.Mount(device, DataDir, "ext4", flags, options); err == nil {
			return nil
		}
	}
	return fmt.Errorf("mount data disk: %w", err)
}

// grow fills a disk of size bytes with its mounted file system.
func grow(log *slog.Logger, sb Superblock, size int64) error {
	dir, err := os.Open(DataDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	blocks := uint64(size / sb.BlockSize)
	// EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64) (fs/ext4/ext4.h)
	const resize = 0x40086610
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), resize, uintptr(unsafe.Pointer(&blocks))); errno != 0 {
		return fmt.Errorf("grow file system to %d blocks: %w", blocks, errno)
	}
	log.Info("the data disk has grown", "from", sb.Size(), "to", size)
	return nil
}

// LeaveData syncs and unmounts the data disk and what is bound from it. Where something still holds it, it is made
// read-only, which is as good for what lies on it.
func LeaveData() error {
	unix.Sync()
	for _, b := range binds {
		_ = unix.Unmount(b.to, unix.MNT_DETACH)
	}
	err := unix.Unmount(DataDir, 0)
	if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: it was never mounted
		return nil
	}
	if ro := unix.Mount("", DataDir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); ro == nil {
		return nil
	}
	// sysrq u makes every file system read-only, open files or not.
	if os.WriteFile("/proc/sysrq-trigger", []byte("u"), 0) == nil {
		unix.Sync()
	}
	return fmt.Errorf("unmount data disk: %w", err)
}

// osRelease returns a key's value in an os-release file; "" where there is none.
func osRelease(data, key string) string {
	for line := range strings.Lines(data) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}

// ImageVersion is the guest image's own version.
func ImageVersion() string {
	data, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "unknown"
	}
	return osRelease(string(data), "IMAGE_VERSION")
}
