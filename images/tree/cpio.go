package tree

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// WriteCPIO writes the tree as a "newc" archive (Linux, Documentation/driver-api/early-userspace/buffer-format.rst), sorted,
// with inode numbers in that order and every time 0. The size is a multiple of 4, so that another archive may follow.
func (t *Tree) WriteCPIO(w io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<20)
	for i, name := range t.Names() {
		if err := writeCPIOEntry(out, i+1, name, t.nodes[name]); err != nil {
			return fmt.Errorf("archive %s: %w", name, err)
		}
	}
	if err := writeCPIOEntry(out, 0, "TRAILER!!!", Node{}); err != nil {
		return err
	}
	return out.Flush()
}

func writeCPIOEntry(w io.Writer, ino int, name string, n Node) error {
	size, nlink := n.Content.Size, 1
	switch {
	case n.Mode&fs.ModeSymlink != 0:
		size = int64(len(n.Target))
	case n.Mode.IsDir():
		nlink = 2
	}
	if size > 1<<32-1 {
		return fmt.Errorf("%d bytes are too many for the format", size)
	}
	head := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		ino, unixMode(n.Mode), 0, 0, nlink, 0, size, 0, 0, n.Major, n.Minor, len(name)+1, 0, name)
	if _, err := io.WriteString(w, head+pad4(int64(len(head)))); err != nil {
		return err
	}
	if n.Mode&fs.ModeSymlink != 0 {
		_, err := io.WriteString(w, n.Target+pad4(size))
		return err
	}
	if size == 0 {
		return nil
	}
	if err := copyContent(w, n.Content); err != nil {
		return err
	}
	_, err := io.WriteString(w, pad4(size))
	return err
}

// pad4 is the zeros that bring n bytes to a multiple of 4.
func pad4(n int64) string { return strings.Repeat("\x00", int(-n&3)) }

// copyContent writes c whole, and fails where its source has another size than c says.
func copyContent(w io.Writer, c Content) error {
	r, err := c.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(w, r)
	if err == nil && n != c.Size {
		err = fmt.Errorf("content has %d bytes: want %d", n, c.Size)
	}
	return err
}

// unixMode turns a Go mode into stat's st_mode. The trailer's zero Node gives 0, as the format has it.
func unixMode(m fs.FileMode) uint32 {
	mode := uint32(m.Perm())
	for _, bit := range []struct {
		from fs.FileMode
		to   uint32
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&bit.from != 0 {
			mode |= bit.to
		}
	}
	switch {
	case m.IsDir():
		return mode | 0o040000
	case m&fs.ModeSymlink != 0:
		return mode | 0o120000
	case m&fs.ModeCharDevice != 0:
		return mode | 0o020000
	case m == 0:
		return 0
	}
	return mode | 0o100000
}
