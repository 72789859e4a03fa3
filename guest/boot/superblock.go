//go:build linux

package boot

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// Where things are on a disk (Documentation/filesystems/ext4/super.rst of Linux).
const (
	superblockAt   = 1024
	superblockSize = 1024
	ext4Magic      = 0xEF53
	blankSize      = 1 << 20 // how much of a disk must be zero for it to be blank
	markSize       = 4096    // the disk's last block, where a format in progress is marked
	// backupAt is where ext4 with blocks of 4 KiB keeps its first copy of the superblock: the start of the second group.
	backupAt = 32768 * 4096
)

// formatMark stands in the disk's last block while it is being formatted, so that a machine that was killed meanwhile
// formats again instead of refusing its own half-made disk.
var formatMark = []byte("coracle: this disk is being formatted\n")

// Content is what a disk holds.
type Content int

// What a disk can hold.
const (
	Foreign    Content = iota // something that is not ours: never touched
	Blank                     // nothing: to be formatted
	Unfinished                // a format that did not come to its end: to be formatted again
	Ext4                      // a file system
)

// Superblock is what matters here of ext4's.
type Superblock struct {
	Blocks    uint64
	BlockSize int64
	Errors    bool // the kernel noted errors: a check is due
	Mounted   bool // it was mounted for writing, at least once
	Label     string
}

// Size is the file system's size in bytes.
func (s Superblock) Size() int64 { return int64(s.Blocks) * s.BlockSize }

// Inspect tells what a disk of size bytes holds.
func Inspect(disk io.ReaderAt, size int64) (Content, Superblock, error) {
	if size < 2*blankSize {
		return Foreign, Superblock{}, fmt.Errorf("disk has %d bytes: too small to hold anything", size)
	}
	head := make([]byte, blankSize)
	if _, err := disk.ReadAt(head, 0); err != nil {
		return Foreign, Superblock{}, fmt.Errorf("read disk's beginning: %w", err)
	}
	mark := make([]byte, len(formatMark))
	if _, err := disk.ReadAt(mark, size-markSize); err != nil {
		return Foreign, Superblock{}, fmt.Errorf("read disk's end: %w", err)
	}
	unfinished := bytes.Equal(mark, formatMark)
	sb, isExt4, err := ParseSuperblock(head[superblockAt : superblockAt+superblockSize])
	switch {
	// A disk that was in use is never formatted, whatever its last block says: that may be a file's content.
	case isExt4 && (sb.Mounted || !unfinished):
		return Ext4, sb, err
	case unfinished:
		return Unfinished, sb, nil
	case len(bytes.TrimLeft(head, "\x00")) > 0:
		return Foreign, sb, nil
	}
	// A file system that has lost its beginning can be repaired, unless it is formatted.
	if lost, err := hasBackup(disk, size); lost || err != nil {
		return Foreign, sb, err
	}
	return Blank, sb, nil
}

func hasBackup(disk io.ReaderAt, size int64) (bool, error) {
	if size < backupAt+superblockSize {
		return false, nil
	}
	b := make([]byte, superblockSize)
	if _, err := disk.ReadAt(b, backupAt); err != nil {
		return false, fmt.Errorf("read disk's second group: %w", err)
	}
	_, isExt4, _ := ParseSuperblock(b)
	return isExt4, nil
}

// ParseSuperblock reads an ext4 superblock. ok says that it is one, by its magic number; err that its numbers make no sense.
func ParseSuperblock(b []byte) (s Superblock, ok bool, err error) {
	le := binary.LittleEndian
	if len(b) < superblockSize || le.Uint16(b[0x38:]) != ext4Magic {
		return s, false, nil
	}
	logSize := le.Uint32(b[0x18:])
	if logSize > 6 {
		return s, true, fmt.Errorf("ext4 superblock has block size 2^%d", uint64(logSize)+10)
	}
	s.BlockSize = 1024 << logSize
	s.Blocks = uint64(le.Uint32(b[0x4:]))
	const incompat64bit = 0x80
	if le.Uint32(b[0x60:])&incompat64bit != 0 {
		s.Blocks |= uint64(le.Uint32(b[0x150:])) << 32
	}
	if s.Blocks == 0 || s.Blocks > 1<<46/uint64(s.BlockSize) {
		return s, true, fmt.Errorf("ext4 superblock has %d blocks of %d bytes", s.Blocks, s.BlockSize)
	}
	const stateErrors = 0x2
	s.Errors = le.Uint16(b[0x3A:])&stateErrors != 0
	s.Mounted = le.Uint32(b[0x2C:]) != 0 || le.Uint16(b[0x34:]) != 0 // time of the last mount, number of mounts
	s.Label = string(bytes.TrimRight(b[0x78:0x88], "\x00"))
	return s, true, nil
}
