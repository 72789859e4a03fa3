//go:build linux

package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ask does what each line of standard input says, and answers with one line: what was read, or what went wrong.
func ask([]string) error {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		answer, err := do(strings.Fields(in.Text()))
		if err != nil {
			var errno unix.Errno
			answer = "error " + err.Error()
			if errors.As(err, &errno) {
				answer = "error " + unix.ErrnoName(errno)
			}
		}
		fmt.Println(answer)
	}
	return in.Err()
}

func do(words []string) (string, error) {
	switch words[0] {
	case "read":
		b, err := os.ReadFile(words[1])
		return string(b), err
	case "stat":
		st, err := os.Lstat(words[1])
		if err != nil {
			return "", err
		}
		sys := st.Sys().(*syscall.Stat_t)
		return fmt.Sprintf("%s %d %d:%d", st.Mode(), st.Size(), sys.Uid, sys.Gid), nil
	case "list":
		entries, err := os.ReadDir(words[1])
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " "), err
	case "write":
		return "ok", os.WriteFile(words[1], []byte(words[2]), 0o644)
	case "rm":
		return "ok", os.RemoveAll(words[1])
	case "mv":
		return "ok", os.Rename(words[1], words[2])
	case "chown":
		uid, _ := strconv.Atoi(words[1])
		return "ok", os.Chown(words[2], uid, uid)
	case "chmod":
		mode, _ := strconv.ParseUint(words[1], 8, 32)
		return "ok", unix.Chmod(words[2], uint32(mode))
	case "mknod":
		return "ok", unix.Mknod(words[1], unix.S_IFBLK|0o666, int(unix.Mkdev(8, 0)))
	}
	return "", fmt.Errorf("unknown order %q", words[0])
}

var eventNames = []struct {
	bit  uint32
	name string
}{
	{unix.IN_CREATE, "CREATE"}, {unix.IN_DELETE, "DELETE"}, {unix.IN_MODIFY, "MODIFY"}, {unix.IN_ATTRIB, "ATTRIB"},
	{unix.IN_MOVED_FROM, "MOVED_FROM"}, {unix.IN_MOVED_TO, "MOVED_TO"},
}

// watch prints the inotify events of directories, as any program sees them, one a line.
func watch(args []string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	dirs := map[int]string{}
	for _, dir := range args {
		wd, err := unix.InotifyAddWatch(fd, dir, unix.IN_ALL_EVENTS)
		if err != nil {
			return err
		}
		dirs[wd] = filepath.Base(dir)
	}
	fmt.Println("watching")
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd, mask, size := int(int32(binary.NativeEndian.Uint32(b))), binary.NativeEndian.Uint32(b[4:]), int(binary.NativeEndian.Uint32(b[12:]))
			name := strings.TrimRight(string(b[unix.SizeofInotifyEvent:unix.SizeofInotifyEvent+size]), "\x00")
			for _, e := range eventNames {
				if mask&e.bit != 0 {
					fmt.Println(e.name, filepath.Join(dirs[wd], name))
				}
			}
			b = b[unix.SizeofInotifyEvent+size:]
		}
	}
}

// manifest is every entry beneath dir: its path, kind, and content's digest.
func manifest(dir string) ([]string, error) {
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		switch {
		case d.IsDir():
			lines = append(lines, fmt.Sprintf("%q dir", rel))
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			lines = append(lines, fmt.Sprintf("%q link %q", rel, to))
			return err
		default:
			b, err := os.ReadFile(path)
			lines = append(lines, fmt.Sprintf("%q %d %x", rel, len(b), sha256.Sum256(b)))
			return err
		}
		return nil
	})
	slices.Sort(lines)
	return lines, err
}

func printManifest(args []string) error {
	lines, err := manifest(args[0])
	fmt.Println(strings.Join(lines, "\n"))
	return err
}

// timed prints how long f took per piece, in nanoseconds, as a benchmark reads it.
func timed(name string, n int, f func() error) error {
	began := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err := fmt.Printf("%s %d\n", name, time.Since(began).Nanoseconds()/int64(n))
	return err
}

// small makes, looks at, reads and removes n files of 1 KiB.
func small(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	dir := filepath.Join(args[0], "small")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	content := make([]byte, 1024)
	each := func(f func(path string) error) func() error {
		return func() error {
			for i := range n {
				if err := f(filepath.Join(dir, strconv.Itoa(i))); err != nil {
					return err
				}
			}
			return nil
		}
	}
	stat := each(func(p string) error { _, err := os.Lstat(p); return err })
	read := each(func(p string) error { _, err := os.ReadFile(p); return err })
	return errors.Join(
		timed("create", n, each(func(p string) error { return os.WriteFile(p, content, 0o644) })),
		timed("stat", n, stat), timed("stat-warm", n, stat), timed("read", n, read), timed("read-warm", n, read),
		timed("unlink", n, each(os.Remove)), os.Remove(dir))
}

// walk looks at every entry beneath a directory, twice: cold is what a first look costs, warm the second.
func walk(args []string) error {
	n := 0
	look := func() error {
		n = 0
		return filepath.WalkDir(args[0], func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			n++
			_, err = d.Info()
			return err
		})
	}
	return errors.Join(timed("walk-cold", 1, look), timed("walk-warm", 1, look), func() error { _, err := fmt.Println("entries", n); return err }())
}

// sequential writes and reads so many MiB, and reads them again from the cache; it prints nanoseconds per MiB.
func sequential(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	path := filepath.Join(args[0], "seq")
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i * 7)
	}
	write := func() error {
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		for range n {
			if _, err := f.Write(block); err != nil {
				return err
			}
		}
		return errors.Join(f.Sync(), f.Close())
	}
	read := func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		for range n {
			if _, err := f.Read(block); err != nil {
				return err
			}
		}
		return nil
	}
	drop := func() error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}
	return errors.Join(timed("write", n, write), drop(), timed("read", n, read), timed("read-warm", n, read), os.Remove(path))
}

// specialFiles does in a directory what few programs do: memory maps, hard links, nameless files, sockets, locks, strange
// names. It prints "ok" where each did what Linux says.
func specialFiles(args []string) error {
	dir := filepath.Join(args[0], "special")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, try := range []struct {
		name string
		f    func(dir string) error
	}{{"mmap", tryMmap}, {"hard link", tryLink}, {"nameless file", tryTmpfile}, {"socket", trySocket}, {"lock", tryLock}, {"names", tryNames}, {"unlinked", tryUnlinked}} {
		if err := try.f(dir); err != nil {
			return fmt.Errorf("%s: %w", try.name, err)
		}
	}
	fmt.Println("ok")
	return os.RemoveAll(dir)
}
