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

var held []*os.File // locked

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
	case "now":
		return strconv.FormatInt(time.Now().UnixNano(), 10), nil
	case "set-clock": // by so many seconds
		n, _ := strconv.Atoi(words[1])
		t := unix.NsecToTimespec(time.Now().Add(time.Duration(n) * time.Second).UnixNano())
		return "ok", unix.ClockSettime(unix.CLOCK_REALTIME, &t)
	case "lock": // until this process ends
		f, err := os.OpenFile(words[1], os.O_RDWR, 0)
		if err == nil {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		}
		if err == nil {
			held = append(held, f)
		}
		return "ok", err
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
