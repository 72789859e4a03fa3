package share

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

var seedFlag = flag.Uint64("seed", 0, "of the random operations; 0: a new one each time")

func seed(t *testing.T) *rand.Rand {
	s := *seedFlag
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat with -seed %d", s)
	return rand.New(rand.NewPCG(s, 1))
}

// operation is one random change, that can be made in any directory.
type operation struct {
	kind       int
	path, to   string
	mode, size uint32
	data       string
}

func (o operation) String() string {
	names := []string{"write", "append", "truncate", "create", "mkdir", "unlink", "rmdir", "rename", "link", "symlink", "chmod", "exchange", "overwrite"}
	return fmt.Sprintf("%s %s %s mode %o size %d data %d", names[o.kind], o.path, o.to, o.mode, o.size, len(o.data))
}

func randomOperation(r *rand.Rand) operation {
	path := func() string {
		parts := []string{string('a' + rune(r.IntN(4)))}
		for r.IntN(3) == 0 && len(parts) < 3 {
			parts = append(parts, string('a'+rune(r.IntN(4))))
		}
		return strings.Join(parts, "/")
	}
	return operation{
		kind: r.IntN(13), path: path(), to: path(), mode: uint32(r.IntN(0o1000)) | 0o600, size: uint32(r.IntN(20000)),
		data: strings.Repeat(string('A'+rune(r.IntN(26))), r.IntN(9000)),
	}
}

// do makes the operation in dir and returns what became of it.
func (o operation) do(dir string) string {
	path, to := filepath.Join(dir, o.path), filepath.Join(dir, o.to)
	var err error
	open := func(flags int) {
		var fd int
		if fd, err = unix.Open(path, flags|unix.O_NOFOLLOW, o.mode); err == nil {
			if flags&unix.O_TRUNC != 0 || flags&unix.O_APPEND != 0 {
				_, err = unix.Write(fd, []byte(o.data))
			} else {
				_, err = unix.Pwrite(fd, []byte(o.data), int64(o.size/2))
			}
			unix.Close(fd)
		}
	}
	switch o.kind {
	case 0:
		open(unix.O_WRONLY | unix.O_CREAT | unix.O_TRUNC)
	case 1:
		open(unix.O_WRONLY | unix.O_APPEND)
	case 2:
		err = unix.Truncate(path, int64(o.size))
	case 3:
		open(unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL)
	case 4:
		err = unix.Mkdir(path, o.mode|0o700)
	case 5:
		err = unix.Unlink(path)
	case 6:
		err = unix.Rmdir(path)
	case 7:
		err = unix.Rename(path, to)
	case 8:
		err = unix.Linkat(unix.AT_FDCWD, path, unix.AT_FDCWD, to, 0)
	case 9:
		err = unix.Symlink(o.to, path)
	case 10:
		err = unix.Fchmodat(unix.AT_FDCWD, path, o.mode|0o700, 0)
	case 11:
		err = unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	case 12:
		open(unix.O_WRONLY)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return fmt.Sprint(err)
}

// describeTree lists all beneath dir with its content.
func describeTree(dir string, modes bool) (lines []string, err error) {
	err = filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err != nil || p == dir {
			return err
		}
		line := strings.TrimPrefix(p, dir)
		if info.Mode()&os.ModeSymlink != 0 {
			target, err := os.Readlink(p)
			lines = append(lines, line+" -> "+target)
			return err
		}
		if modes {
			line += " " + info.Mode().String()
		} else {
			line += " " + info.Mode().Type().String()
		}
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d links %d", len(content), info.Sys().(*syscall.Stat_t).Nlink)
			if int64(len(content)) != info.Size() {
				line += fmt.Sprintf(" and by stat %d", info.Size())
			}
			for i := range content {
				if i == 0 || content[i] != content[i-1] {
					line += fmt.Sprintf(" %d:%q", i, content[i])
				}
			}
		}
		lines = append(lines, line)
		return nil
	})
	return lines, err
}

// TestModel makes random changes in a share and in a directory that is none: they end alike, and so do the trees.
func TestModel(t *testing.T) {
	r := seed(t)
	_, dir := watched(t)
	model := t.TempDir()
	stop := time.Now().Add(2 * time.Second)
	var last []string
	for i := 0; time.Now().Before(stop); i++ {
		o := randomOperation(r)
		got, want := o.do(dir), o.do(model)
		if last = append(last, o.String()+": "+got); len(last) > 10 {
			last = last[1:]
		}
		if got != want {
			t.Fatalf("operation %d: %v, want %v\n%s", i, got, want, strings.Join(last, "\n"))
		}
		if i%20 != 0 {
			continue
		}
		want1, err := describeTree(model, true)
		must(t, err)
		got1, err := describeTree(dir, true)
		must(t, err)
		if diff := cmp.Diff(want1, got1); diff != "" {
			t.Fatalf("after %d operations: %s\n%s", i, diff, strings.Join(last, "\n"))
		}
	}
}

// TestCoherence has the host and the guest make random changes of the same files, by turns. Once it is quiet, the guest sees
// what the host has, whatever it remembers. Before the guest's turn it is let be quiet: what is not promised is a host's write
// that the guest's own write to the same file follows before it was heard of; the two mix then, as they do on any network.
func TestCoherence(t *testing.T) {
	r := seed(t)
	f, dir := watched(t)
	stop := time.Now().Add(4 * time.Second)
	rounds := 0
	for ; time.Now().Before(stop); rounds++ {
		var last []string
		turn := "guest"
		for range 1 + r.IntN(30) {
			o := randomOperation(r)
			where, name := f.root, "host"
			if r.IntN(2) == 0 {
				where, name = dir, "guest"
				if turn == "host" {
					settle(t, f.root, dir, rounds, &last)
				}
			}
			turn = name
			last = append(last, name+" "+o.String()+": "+o.do(where))
			if r.IntN(8) == 0 {
				describeTree(dir, false) // so that there is something to remember
			}
		}
		settle(t, f.root, dir, rounds, &last)
	}
	t.Logf("%d rounds", rounds)
}

// settle waits until the guest sees beneath dir what the host has beneath root.
func settle(t *testing.T, root, dir string, round int, last *[]string) {
	t.Helper()
	deadline := time.Now().Add(3 * time.Second)
	for {
		want, err := describeTree(root, false)
		must(t, err)
		got, err := describeTree(dir, false)
		if err == nil && cmp.Equal(want, got) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("round %d: %v %s\n%s", round, err, cmp.Diff(want, got), strings.Join(*last, "\n"))
		}
		time.Sleep(time.Millisecond)
	}
}
