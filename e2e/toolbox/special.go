//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

func tryMmap(dir string) error {
	path := filepath.Join(dir, "mapped")
	if err := os.WriteFile(path, make([]byte, 8192), 0o644); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m[5000:], "mapped")
	if err := errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m)); err != nil {
		return err
	}
	b, err := os.ReadFile(path)
	if err == nil && string(b[5000:5006]) != "mapped" {
		err = errors.New("what was written to memory is not in the file")
	}
	return err
}

func tryLink(dir string) error {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := errors.Join(os.WriteFile(a, []byte("one"), 0o644), os.Link(a, b), os.WriteFile(b, []byte("two"), 0o644)); err != nil {
		return err
	}
	x, err := os.ReadFile(a)
	if err != nil {
		return err
	}
	sa, err := os.Stat(a)
	if err != nil {
		return err
	}
	sb, err := os.Stat(b)
	if err != nil {
		return err
	}
	if string(x) != "two" || !os.SameFile(sa, sb) {
		return fmt.Errorf("%q, same file: %t", x, os.SameFile(sa, sb))
	}
	return os.Rename(b, filepath.Join(dir, "c"))
}

func tryTmpfile(dir string) error {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte("nameless")); err != nil {
		return err
	}
	named := filepath.Join(dir, "named")
	if err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, named, unix.AT_SYMLINK_FOLLOW); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	b, err := os.ReadFile(named)
	if err == nil && string(b) != "nameless" {
		err = fmt.Errorf("it holds %q", b)
	}
	return err
}

func trySocket(dir string) error {
	path := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Write([]byte("x"))
			c.Close()
		}
	}()
	c, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	return err
}

// tryLock has two open files contend for a lock, of both kinds.
func tryLock(dir string) error {
	path := filepath.Join(dir, "locked")
	a, err := os.Create(path)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := unix.Flock(int(a.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	if err := unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("a second flock: %v", err)
	}
	ofd := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(a.Fd(), unix.F_OFD_SETLK, &ofd); err != nil {
		return err
	}
	ofd = unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLK, &ofd); !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("a second record lock: %v", err)
	}
	return nil
}

func tryNames(dir string) error {
	for _, name := range []string{"\xff\xfe", "new\nline", " ", "-rf", "ü", "u\u0308", string(make255())} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(name), 0o644); err != nil {
			return err
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != name {
			return fmt.Errorf("%q: %q, %v", name, b, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) < 7 {
		err = fmt.Errorf("%d entries", len(entries))
	}
	return err
}

func make255() []byte {
	b := make([]byte, 255)
	for i := range b {
		b[i] = 'n'
	}
	return b
}

// tryUnlinked goes on with a file whose name is gone.
func tryUnlinked(dir string) error {
	path := filepath.Join(dir, "gone")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		return err
	}
	if _, err := f.WriteString("still here"); err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, 10)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "still here" || st.Size() != 10 {
		return fmt.Errorf("%q, %d bytes, %v", b, st.Size(), err)
	}
	return f.Truncate(3)
}

// escape tries for so many seconds to reach a file of the host's outside a share, by links and moves, and fails where it did.
func escape(args []string) error {
	dir, outside := args[0], args[1]
	seconds, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	link, sub := filepath.Join(dir, "link"), filepath.Join(dir, "swap")
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end); {
		_ = os.Mkdir(sub, 0o755)
		_ = os.Symlink(outside, link)
		_ = unix.Renameat2(unix.AT_FDCWD, link, unix.AT_FDCWD, sub, unix.RENAME_EXCHANGE)
		for _, path := range []string{sub + "/canary", link + "/canary", dir + "/../../../../../../../.." + outside + "/canary"} {
			if b, err := os.ReadFile(path); err == nil && string(b) == "untouched" {
				return fmt.Errorf("read %s", path)
			}
			_ = os.WriteFile(path, []byte("changed"), 0o644)
			_ = os.Chmod(path, 0o777)
		}
		_ = os.Link(link, filepath.Join(dir, "hard"))
		_ = os.Remove(filepath.Join(dir, "hard"))
		_ = os.Remove(link)
		_ = os.RemoveAll(sub)
	}
	return nil
}
