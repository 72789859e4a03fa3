package share

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMapping: shared memory maps of files of a share, between two openers.
func TestMapping(t *testing.T) {
	f, dir := watched(t)
	write(t, dir+"/m", string(make([]byte, 8192)))
	a, err := os.OpenFile(dir+"/m", os.O_RDWR, 0)
	must(t, err)
	defer a.Close()
	b, err := os.OpenFile(dir+"/m", os.O_RDWR|os.O_APPEND, 0)
	must(t, err)
	defer b.Close()
	one, err := unix.Mmap(int(a.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	two, err := unix.Mmap(int(b.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	copy(one[4000:], "through the map")
	if !bytes.Equal(two[4000:4015], []byte("through the map")) {
		t.Error("the second map does not see the first")
	}
	must(t, unix.Msync(one, unix.MS_SYNC), unix.Munmap(one), unix.Munmap(two))
	got, err := os.ReadFile(f.root + "/m")
	must(t, err)
	if len(got) != 8192 || string(got[4000:4015]) != "through the map" {
		t.Errorf("the host has %d bytes, %q", len(got), got[4000:4015])
	}
}

// TestNamelessFiles: O_TMPFILE, linkat of it, fstat and use of what was unlinked.
func TestNamelessFiles(t *testing.T) {
	f, dir := watched(t)
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR, 0o640)
	must(t, err)
	tmp := os.NewFile(uintptr(fd), "tmp")
	defer tmp.Close()
	_, err = tmp.WriteString("nameless")
	must(t, err, unix.Linkat(unix.AT_FDCWD, self(fd), unix.AT_FDCWD, dir+"/named", unix.AT_SYMLINK_FOLLOW))
	reads(t, f.root+"/named", "nameless")
	must(t, os.Remove(dir+"/named"))
	info, err := tmp.Stat()
	if err != nil || info.Size() != 8 {
		t.Fatalf("fstat: %v, %v", info, err)
	}
	must(t, tmp.Truncate(4), tmp.Chmod(0o600))
	_, err = tmp.WriteAt([]byte("more"), 4)
	must(t, err)
	again, err := os.OpenFile(self(fd), os.O_RDWR, 0)
	must(t, err)
	defer again.Close()
	got := make([]byte, 8)
	if _, err := again.ReadAt(got, 0); err != nil || string(got) != "namemore" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestLinksSocketsPipes(t *testing.T) {
	f, dir := watched(t)
	write(t, dir+"/a", "one")
	must(t, os.Link(dir+"/a", dir+"/b"), os.Mkdir(dir+"/d", 0o755), os.Rename(dir+"/b", dir+"/d/c"))
	write(t, dir+"/d/c", "two")
	reads(t, dir+"/a", "two")
	if n := hostStat(t, dir+"/a"); n.Nlink != 2 || n.Ino != hostStat(t, dir+"/d/c").Ino || n.Ino != hostStat(t, f.root+"/a").Ino {
		t.Errorf("links %d", n.Nlink)
	}
	must(t, os.Remove(dir+"/a"))
	eventually(t, "one link is left", func() error {
		if n := hostStat(t, dir+"/d/c").Nlink; n != 1 {
			return fmt.Errorf("links %d", n)
		}
		return nil
	})
	l, err := net.Listen("unix", dir+"/socket")
	must(t, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = conn.Write([]byte("hello"))
			conn.Close()
		}
		done <- err
	}()
	conn, err := net.Dial("unix", dir+"/socket")
	must(t, err)
	defer conn.Close()
	got := make([]byte, 5)
	_, err = conn.Read(got)
	must(t, err, <-done)
	must(t, unix.Mkfifo(dir+"/pipe", 0o600))
	p, err := os.OpenFile(dir+"/pipe", os.O_RDWR, 0)
	must(t, err, p.Close())
	// From the host nobody listens there: the socket is the guest's.
	if _, err := net.Dial("unix", f.root+"/socket"); err == nil {
		t.Error("the host reaches a socket of the guest's by its file")
	}
}

// TestLocks: locks are kept by the guest's kernel, between its programs.
func TestLocks(t *testing.T) {
	_, dir := watched(t)
	open := func() int {
		fd, err := unix.Open(dir+"/lock", unix.O_RDWR|unix.O_CREAT, 0o644)
		must(t, err)
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	a, b := open(), open()
	must(t, unix.Flock(a, unix.LOCK_EX))
	if err := unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a second flock: %v", err)
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK, Len: 10}
	must(t, unix.FcntlFlock(uintptr(a), unix.F_OFD_SETLK, &lock))
	if err := unix.FcntlFlock(uintptr(b), unix.F_OFD_SETLK, &lock); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a second lock of a range: %v", err)
	}
}

// TestNames: any bytes, as long as a name may be, and paths longer than the system takes at once.
func TestNames(t *testing.T) {
	f, dir := watched(t)
	var names []string
	for c := 1; c < 256; c++ {
		if c != '/' {
			names = append(names, string([]byte{'n', byte(c)}))
		}
	}
	long := string(bytes.Repeat([]byte{0xff}, 255))
	for _, name := range append(names, long, "\n", "-rf", "'; rm \"$x\"") {
		write(t, dir+"/"+name, name)
		reads(t, f.root+"/"+name, name)
	}
	if err := os.WriteFile(dir+"/"+long+"x", nil, 0o644); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a name of 256 bytes: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(names)+4 {
		t.Errorf("%d entries of %d, %v", len(entries), len(names)+4, err)
	}
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	deep := string(bytes.Repeat([]byte{'d'}, 200))
	for range 30 { // 6,000 bytes of path
		must(t, unix.Mkdirat(at, deep, 0o755))
		next, err := unix.Openat(at, deep, unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err, unix.Close(at))
		at = next
	}
	defer unix.Close(at)
	fd, err := unix.Openat(at, "file", unix.O_CREAT|unix.O_RDWR, 0o644)
	must(t, err)
	_, err = unix.Write(fd, []byte("deep"))
	must(t, err, unix.Close(fd))
	var st unix.Stat_t
	if err := unix.Fstatat(at, "file", &st, 0); err != nil || st.Size != 4 {
		t.Errorf("%d bytes, %v", st.Size, err)
	}
	must(t, unix.Unlinkat(at, "file", 0))
}

// TestLargeDirectory lists 100,000 files, each once, also while others come and go.
func TestLargeDirectory(t *testing.T) {
	files := 100_000
	if testing.Short() {
		files = 5_000
	}
	f, dir := watched(t)
	must(t, os.Mkdir(f.root+"/large", 0o755))
	for i := range files {
		fd, err := unix.Open(fmt.Sprintf("%s/large/%06d", f.root, i), unix.O_CREAT|unix.O_WRONLY, 0o644)
		must(t, err, unix.Close(fd))
	}
	for _, name := range []string{"first", "from the cache"} {
		entries, err := os.ReadDir(dir + "/large")
		must(t, err)
		seen := map[string]bool{}
		for _, e := range entries {
			seen[e.Name()] = true
		}
		if len(entries) != files || len(seen) != files {
			t.Fatalf("%s: %d entries, %d names, want %d", name, len(entries), len(seen), files)
		}
	}
	d, err := os.Open(dir + "/large")
	must(t, err)
	defer d.Close()
	removed := 0
	for { // what rm -r does: read a part, take it away, read on
		names, err := d.Readdirnames(1000)
		if err != nil {
			break
		}
		for _, name := range names[:len(names)/100] {
			must(t, os.Remove(dir+"/large/"+name))
			removed++
		}
	}
	eventually(t, "what is left", func() error {
		entries, err := os.ReadDir(dir + "/large")
		if err != nil || len(entries) != files-removed {
			return fmt.Errorf("%d entries, want %d, %v", len(entries), files-removed, err)
		}
		return nil
	})
}

// TestSparse: holes, copies within the server, preallocation.
func TestSparse(t *testing.T) {
	f, dir := watched(t)
	a, err := os.Create(dir + "/a")
	must(t, err)
	defer a.Close()
	_, err = a.WriteAt([]byte("end"), 1<<20)
	must(t, err)
	if off, err := unix.Seek(int(a.Fd()), 0, unix.SEEK_DATA); off != 1<<20 || err != nil {
		t.Errorf("data begins at %d, %v", off, err)
	}
	if off, err := unix.Seek(int(a.Fd()), 1<<20, unix.SEEK_HOLE); off != 1<<20+3 || err != nil {
		t.Errorf("the hole begins at %d, %v", off, err)
	}
	must(t, unix.Fallocate(int(a.Fd()), 0, 0, 2<<20))
	if info, err := a.Stat(); err != nil || info.Size() != 2<<20 {
		t.Errorf("%v, %v", info, err)
	}
	b, err := os.Create(dir + "/b")
	must(t, err)
	defer b.Close()
	from := int64(1 << 20)
	n, err := unix.CopyFileRange(int(a.Fd()), &from, int(b.Fd()), nil, 3, 0)
	if n != 3 || err != nil {
		t.Errorf("copied %d, %v", n, err)
	}
	reads(t, f.root+"/b", "end")
	must(t, b.Sync(), unix.Fdatasync(int(b.Fd())))
}

// TestAppend: several programs append to one file, and so does the host: nothing is written over.
func TestAppend(t *testing.T) {
	f, dir := watched(t)
	write(t, f.root+"/log", "")
	const each, line = 200, "a line of some length\n"
	var writers sync.WaitGroup
	for _, path := range []string{dir, dir, f.root} {
		writers.Go(func() {
			file, err := os.OpenFile(path+"/log", os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer file.Close()
			for range each {
				if _, err := file.WriteString(line); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	got, err := os.ReadFile(f.root + "/log")
	if err != nil || len(got) != 3*each*len(line) || !bytes.Equal(got, bytes.Repeat([]byte(line), 3*each)) {
		t.Errorf("%d bytes of %d, %v", len(got), 3*each*len(line), err)
	}
	eventually(t, "the guest reads it all", func() error {
		seen, err := os.ReadFile(dir + "/log")
		if err != nil || !bytes.Equal(seen, got) {
			return fmt.Errorf("%d bytes, %v", len(seen), err)
		}
		return nil
	})
}

// TestOtherUsers: any user of a container can work in the user's directories, and none in what another one closed.
func TestOtherUsers(t *testing.T) {
	f, dir := watched(t)
	must(t, os.Mkdir(f.root+"/project", 0o755))
	as := func(uid int, do func() error) error {
		result := make(chan error)
		go func() { // the thread is thrown away
			runtime.LockOSThread()
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
				result <- errno
				return
			}
			result <- do()
		}()
		return <-result
	}
	// The temporary directories above the mount are root's alone: go in by descriptor.
	at, err := unix.Open(filepath.Join(dir, "project"), unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	defer unix.Close(at)
	must(t, as(1000, func() error { return unix.Mkdirat(at, "mine", 0o700) }))
	must(t, as(1000, func() error {
		fd, err := unix.Openat(at, "mine/file", unix.O_CREAT|unix.O_RDWR, 0o600)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	}))
	if err := as(1001, func() error { _, err := unix.Openat(at, "mine/file", unix.O_RDONLY, 0); return err }); !errors.Is(err, unix.EACCES) {
		t.Errorf("another user's file opens: %v", err)
	}
	if st := hostStat(t, dir+"/project/mine/file"); st.Uid != 1000 {
		t.Errorf("the file is %d's", st.Uid)
	}
	if st := hostStat(t, f.root+"/project/mine/file"); st.Uid != uint32(os.Geteuid()) {
		t.Errorf("on the host the file is %d's", st.Uid)
	}
}
