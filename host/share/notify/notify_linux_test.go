package notify

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func open(t *testing.T) *Watcher {
	t.Helper()
	w, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func add(t *testing.T, w *Watcher, dir string) ID {
	t.Helper()
	id, err := tryAdd(w, dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func tryAdd(w *Watcher, dir string) (ID, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC|unix.O_DIRECTORY, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return w.Add(fd)
}

// heard collects events until last is among them.
func heard(t *testing.T, w *Watcher, last func(Event) bool) []Event {
	t.Helper()
	var all []Event
	deadline := time.After(5 * time.Second)
	for {
		select {
		case batch, ok := <-w.Events():
			if !ok {
				t.Fatalf("the channel was closed after %v", all)
			}
			all = append(all, batch...)
			for _, e := range batch {
				if last(e) {
					return all
				}
			}
		case <-deadline:
			t.Fatalf("nothing more after %v", all)
		}
	}
}

func named(name string) func(Event) bool { return func(e Event) bool { return e.Name == name } }

func check(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestKinds(t *testing.T) {
	write := func(path string) error { return os.WriteFile(path, []byte("x"), 0o600) }
	for name, c := range map[string]struct {
		before, do func(dir string) error
		want       []Event
	}{
		"create": {nil, func(d string) error { return write(d + "/a") },
			[]Event{{Name: "a", Kind: Created}, {Name: "a", Kind: Modified}}},
		"any bytes": {nil, func(d string) error { return os.Symlink("x", d+"/\xff\n \u00e9") },
			[]Event{{Name: "\xff\n \u00e9", Kind: Created}}},
		"longest name": {nil, func(d string) error { return os.Mkdir(d+"/"+strings.Repeat("n", 255), 0o700) },
			[]Event{{Name: strings.Repeat("n", 255), Kind: Created, IsDir: true}}},
		"remove": {func(d string) error { return write(d + "/a") }, func(d string) error { return os.Remove(d + "/a") },
			[]Event{{Name: "a", Kind: Removed}}},
		"modify": {func(d string) error { return write(d + "/a") }, func(d string) error { return os.Truncate(d+"/a", 9) },
			[]Event{{Name: "a", Kind: Modified}}},
		"attributes": {func(d string) error { return write(d + "/a") }, func(d string) error { return os.Chmod(d+"/a", 0o640) },
			[]Event{{Name: "a", Kind: Attributes}}},
		"rmdir": {func(d string) error { return os.Mkdir(d+"/a", 0o700) }, func(d string) error { return os.Remove(d + "/a") },
			[]Event{{Name: "a", Kind: Removed, IsDir: true}}},
		"its own attributes": {nil, func(d string) error { return os.Chmod(d, 0o750) },
			[]Event{{Kind: Attributes, IsDir: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if c.before != nil {
				check(t, c.before(dir))
			}
			w := open(t)
			id := add(t, w, dir)
			check(t, c.do(dir), os.Mkdir(dir+"/last", 0o700))
			got := heard(t, w, named("last"))
			for i := range c.want {
				c.want[i].ID = id
			}
			if diff := cmp.Diff(c.want, got[:len(got)-1]); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRename(t *testing.T) {
	one, two, w := t.TempDir(), t.TempDir(), open(t)
	a, b := add(t, w, one), add(t, w, two)
	check(t, os.Mkdir(one+"/x", 0o700), os.Rename(one+"/x", one+"/y"), os.Rename(one+"/y", two+"/z"))
	got := heard(t, w, named("z"))
	if len(got) != 5 {
		t.Fatalf("heard %v", got)
	}
	if got[1].Cookie == 0 || got[1].Cookie != got[2].Cookie || got[3].Cookie != got[4].Cookie || got[1].Cookie == got[3].Cookie {
		t.Errorf("cookies do not join the halves: %v", got)
	}
	for i := range got {
		got[i].Cookie = 0
	}
	want := []Event{
		{ID: a, Name: "x", Kind: Created, IsDir: true},
		{ID: a, Name: "x", Kind: MovedFrom, IsDir: true}, {ID: a, Name: "y", Kind: MovedTo, IsDir: true},
		{ID: a, Name: "y", Kind: MovedFrom, IsDir: true}, {ID: b, Name: "z", Kind: MovedTo, IsDir: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSameDirectory(t *testing.T) {
	dir, w := t.TempDir(), open(t)
	link := filepath.Join(t.TempDir(), "link")
	check(t, os.Symlink(dir, link))
	a, b := add(t, w, dir), add(t, w, link)
	if a != b {
		t.Fatalf("one directory has the IDs %d and %d", a, b)
	}
	check(t, w.Remove(a), os.Mkdir(dir+"/one", 0o700))
	heard(t, w, named("one"))
	other := t.TempDir()
	add(t, w, other)
	check(t, w.Remove(a), os.Mkdir(dir+"/two", 0o700), os.Mkdir(other+"/three", 0o700))
	if got := heard(t, w, named("three")); len(got) != 1 {
		t.Errorf("a removed directory is still told of: %v", got)
	}
	check(t, w.Remove(a), w.Remove(77))
	if again := add(t, w, dir); again == a {
		t.Errorf("ID %d came back", a)
	}
}

// A link that is put in the directory's place after it was opened turns nothing.
func TestAddFollowsNoName(t *testing.T) {
	top, w := t.TempDir(), open(t)
	dir, secret := top+"/dir", t.TempDir()
	check(t, os.Mkdir(dir, 0o700))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	check(t, err, os.Rename(dir, top+"/moved"), os.Symlink(secret, dir))
	_, err = w.Add(fd)
	check(t, err, unix.Close(fd), os.Mkdir(secret+"/no", 0o700), os.Mkdir(top+"/moved/yes", 0o700))
	if got := heard(t, w, named("yes")); len(got) != 1 {
		t.Errorf("heard %v", got)
	}
}

func TestGone(t *testing.T) {
	top, w := t.TempDir(), open(t)
	dir := top + "/dir"
	check(t, os.Mkdir(dir, 0o700))
	id := add(t, w, dir)
	check(t, os.Remove(dir))
	got := heard(t, w, func(e Event) bool { return e.Kind == Gone })
	if last := got[len(got)-1]; last.ID != id {
		t.Errorf("heard %v of %d", got, id)
	}
	check(t, w.Remove(id)) // void
}

func TestErrors(t *testing.T) {
	w := open(t)
	file := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(file, nil, 0o600))
	fd, err := unix.Open(file, unix.O_PATH|unix.O_CLOEXEC, 0)
	check(t, err)
	defer unix.Close(fd)
	if _, err := w.Add(fd); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("Add(a file) = %v", err)
	}
	if _, err := w.Add(-1); err == nil {
		t.Error("Add(-1) succeeded")
	}
	check(t, w.Close(), w.Close())
	if _, err := w.Add(fd); !errors.Is(err, ErrClosed) {
		t.Errorf("Add after Close = %v", err)
	}
	if err := w.Remove(1); !errors.Is(err, ErrClosed) {
		t.Errorf("Remove after Close = %v", err)
	}
	if _, ok := <-w.Events(); ok {
		t.Error("an event came after Close")
	}
}

// The limit is lowered in a user namespace of a second process, where no other program feels it.
func TestFull(t *testing.T) {
	if os.Getenv("CORACLE_TEST_FULL") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestFull$", "-test.count=1")
		cmd.Env = append(os.Environ(), "CORACLE_TEST_FULL=1")
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids}
		out, err := cmd.CombinedOutput()
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EACCES) {
			t.Skip("needs a user namespace; run the tests as root, or set kernel.unprivileged_userns_clone to 1: ", err)
		}
		if err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	check(t, os.WriteFile("/proc/sys/user/max_inotify_watches", []byte("3"), 0))
	w := open(t)
	var ids []ID
	for range 3 {
		ids = append(ids, add(t, w, t.TempDir()))
	}
	if _, err := tryAdd(w, t.TempDir()); !errors.Is(err, ErrFull) {
		t.Errorf("Add = %v: want ErrFull", err)
	}
	check(t, w.Remove(ids[0]))
	add(t, w, t.TempDir()) // there is room again
}

// A storm is heard whole, or it is said that it was not.
func TestStorm(t *testing.T) {
	const files = 20_000
	for name, slow := range map[string]bool{"quick receiver": false, "no receiver": true} {
		t.Run(name, func(t *testing.T) {
			dir, w := t.TempDir(), open(t)
			add(t, w, dir)
			made := make(chan struct{})
			go func() {
				defer close(made)
				for i := range files {
					_ = unix.Mknod(fmt.Sprintf("%s/%d", dir, i), unix.S_IFREG|0o600, 0)
				}
			}()
			if slow {
				<-made
			}
			seen, overflow := map[string]bool{}, false
			deadline := time.After(20 * time.Second)
			for len(seen) < files && !overflow {
				select {
				case batch := <-w.Events():
					for _, e := range batch {
						seen[e.Name] = true
						overflow = overflow || e.Kind == Overflow && e.ID == 0
					}
				case <-deadline:
					t.Fatalf("heard %d of %d and of no overflow", len(seen), files)
				}
			}
			<-made
			if limit := queueLimit(t); slow && limit < files && !overflow {
				t.Errorf("%d events in a queue of %d, and no overflow", files, limit)
			}
		})
	}
}

func queueLimit(t *testing.T) (n int) {
	t.Helper()
	data, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	check(t, err)
	_, err = fmt.Sscan(string(data), &n)
	check(t, err)
	return n
}

// Add, Remove, changes and Close at once: nothing hangs and nothing is left.
func TestConcurrent(t *testing.T) {
	before := runtime.NumGoroutine()
	w := open(t)
	var wg sync.WaitGroup
	for range 4 {
		dir := t.TempDir()
		wg.Go(func() {
			for i := 0; ; i++ {
				id, err := tryAdd(w, dir)
				if errors.Is(err, ErrClosed) {
					return
				}
				sub := fmt.Sprintf("%s/%d", dir, i)
				_ = os.Mkdir(sub, 0o700)
				_ = os.Remove(sub)
				_ = w.Remove(id)
			}
		})
	}
	for range 50 {
		<-w.Events()
	}
	check(t, w.Close())
	wg.Wait()
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines before, %d after", before, n)
	}
}

func record(wd int32, bits, cookie uint32, name string) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(wd))
	for _, v := range []uint32{bits, cookie, uint32(len(name))} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return append(b, name...)
}

func TestParse(t *testing.T) {
	overflow := record(-1, unix.IN_Q_OVERFLOW, 0, "")
	for name, c := range map[string]struct {
		in   []byte
		want []Event
	}{
		"nothing":      {nil, nil},
		"two":          {append(overflow, record(3, unix.IN_CREATE|unix.IN_ISDIR, 0, "a\x00\x00\x00")...), []Event{{Kind: Overflow}, {ID: 3, Name: "a", Kind: Created, IsDir: true}}},
		"unmount":      {append(record(3, unix.IN_UNMOUNT, 0, ""), record(3, unix.IN_IGNORED, 0, "")...), []Event{{ID: 3, Kind: Gone}}},
		"cut off":      {overflow[:15], nil},
		"cut off name": {record(3, unix.IN_CREATE, 0, "abcd")[:18], nil},
		"huge length":  {append(overflow[:12:12], 0xff, 0xff, 0xff, 0xff), nil},
		"no zero":      {record(3, unix.IN_MODIFY, 0, "abcd"), []Event{{ID: 3, Name: "abcd", Kind: Modified}}},
		"unknown bits": {record(3, 1<<26, 0, "abcd"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, parse(c.in)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(record(3, unix.IN_MOVED_TO, 7, "name\x00\x00\x00\x00"))
	f.Add(append(record(-1, unix.IN_Q_OVERFLOW, 0, ""), record(1, unix.IN_CREATE, 0, "x\x00")...))
	f.Fuzz(func(t *testing.T, buf []byte) {
		total := 0
		for _, e := range parse(buf) {
			total += unix.SizeofInotifyEvent + len(e.Name)
			if e.Kind < Created || e.Kind > Overflow || strings.ContainsRune(e.Name, 0) {
				t.Errorf("parsed %+v", e)
			}
		}
		if total > len(buf) {
			t.Errorf("%d bytes gave events of %d", len(buf), total)
		}
	})
}
