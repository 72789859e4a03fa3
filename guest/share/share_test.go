//go:build linux

package share

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// world is a guest's root in a mount namespace of the test's own thread: a shared tmpfs that is read-only to look at, and
// another file system as what the host serves, with the directories of the tags a, b and c.
type world struct {
	*Shares
	t      *testing.T
	mounts int // how often the device was mounted
}

func newWorld(t *testing.T) *world {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread and its mounts end with the test
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skip("needs mounts of its own: run the tests as root: ", err)
	}
	top := t.TempDir()
	w := &world{Shares: New(slog.New(slog.DiscardHandler), nil), t: t}
	w.root, w.dir = top+"/root", top+"/host"
	w.devices = func() <-chan struct{} { return nil }
	w.mount = func(dir string) error {
		w.mounts++
		return unix.Mount(top+"/disk", dir, "", unix.MS_BIND, "")
	}
	w.do(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), os.Mkdir(w.root, 0o755), os.Mkdir(top+"/disk", 0o755),
		unix.Mount("root", w.root, "tmpfs", 0, ""), unix.Mount("", w.root, "", unix.MS_SHARED, ""),
		unix.Mount("disk", top+"/disk", "tmpfs", 0, ""), os.Mkdir(w.root+"/tmp", 0o755), os.Symlink("tmp", w.root+"/link"))
	for _, tag := range []string{"a", "b", "c"} {
		w.do(os.MkdirAll(top+"/disk/"+tag+"/sub", 0o755), os.WriteFile(top+"/disk/"+tag+"/tag", []byte(tag), 0o644))
	}
	w.do(unix.Mount("", w.root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	t.Cleanup(func() { // the directories could not be removed else
		for _, dir := range []string{"container", "root", "host", "disk"} {
			_ = unix.Unmount(filepath.Join(top, dir), unix.MNT_DETACH)
		}
	})
	return w
}

func (w *world) do(errs ...error) {
	w.t.Helper()
	if err := errors.Join(errs...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) apply(want ...api.Share) {
	w.t.Helper()
	w.do(w.Apply(w.t.Context(), want))
}

// shows checks that the share of a tag is at each path, and at what paths there is nothing at all.
func (w *world) shows(want map[string]string) {
	w.t.Helper()
	for p, tag := range want {
		got, err := os.ReadFile(w.root + p + "/tag")
		switch {
		case tag == "" && !errors.Is(err, os.ErrNotExist):
			w.t.Errorf("%q still shows %q", p, got)
		case tag == "":
			if _, err := os.Lstat(w.root + p); err == nil {
				w.t.Errorf("an empty directory is left at %q", p)
			}
		case string(got) != tag:
			w.t.Errorf("%q shows %q (%v): want %q", p, got, err, tag)
		}
	}
}

// table is the namespace's mounts beneath the root: their paths, and whether they spread.
func (w *world) table() (mounts []string) {
	w.t.Helper()
	info, err := os.ReadFile("/proc/thread-self/mountinfo")
	w.do(err)
	for line := range strings.Lines(string(info)) {
		f := strings.Fields(line)
		if p, ok := strings.CutPrefix(f[4], w.root+"/"); ok {
			mounts = append(mounts, fmt.Sprintf("%s %s %s", p, f[5], strings.SplitN(f[6], ":", 2)[0]))
		}
	}
	return mounts
}

func TestApply(t *testing.T) {
	w := newWorld(t)
	home, work := api.Share{Path: "/home/u", Tag: "a"}, api.Share{Path: "/work", Tag: "b"}

	w.apply()
	if w.mounts != 0 {
		t.Error("the device was mounted for no share")
	}
	w.apply(home, work)
	w.shows(map[string]string{"/home/u": "a", "/work": "b"})
	before := w.have["/work"]
	w.apply(work, home)
	if w.mounts != 1 || w.have["/work"] != before {
		t.Errorf("the same again mounted again: %v, then %v; the device %d times", before, w.have["/work"], w.mounts)
	}
	want := []string{"home/u rw,nosuid,nodev,relatime shared", "work rw,nosuid,nodev,relatime shared"}
	if diff := cmp.Diff(want, w.table()); diff != "" {
		t.Error(diff)
	}
	if err := os.Mkdir(w.root+"/other", 0o755); !errors.Is(err, unix.EROFS) {
		t.Errorf("the root can be written to: %v", err)
	}

	held, err := os.Open(w.root + "/work/sub")
	w.do(err)
	defer held.Close()
	w.apply(home)
	w.shows(map[string]string{"/home/u": "a", "/work": ""})
	if _, err := held.Readdirnames(0); err != nil {
		t.Errorf("what was open is lost: %v", err)
	}
	w.apply()
	w.shows(map[string]string{"/home": ""})
	if got := w.table(); len(got) != 0 {
		t.Errorf("mounts are left: %v", got)
	}
}

func TestReadOnly(t *testing.T) {
	w := newWorld(t)
	write := func() error { return os.WriteFile(w.root+"/work/new", nil, 0o600) }
	w.apply(api.Share{Path: "/work", Tag: "a", ReadOnly: true})
	if err := write(); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a read-only share: %v", err)
	}
	w.apply(api.Share{Path: "/work", Tag: "a"})
	if err := write(); err != nil {
		t.Error(err)
	}
	f, err := os.OpenFile(w.root+"/work/new", os.O_RDWR, 0)
	w.do(err)
	defer f.Close()
	w.apply(api.Share{Path: "/work", Tag: "a", ReadOnly: true}) // though one still writes
	if err := write(); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a share that became read-only: %v", err)
	}
}

func TestNested(t *testing.T) {
	outer, inner := api.Share{Path: "/work", Tag: "a"}, api.Share{Path: "/work/sub", Tag: "b", ReadOnly: true}
	both := map[string]string{"/work": "a", "/work/sub": "b"}
	for name, first := range map[string][]api.Share{"at once": nil, "outer first": {outer}, "inner first": {inner}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if first != nil {
				w.apply(first...)
			}
			w.apply(inner, outer)
			w.shows(both)
			if got := w.table(); len(got) != 2 {
				t.Errorf("mounts: %v", got)
			}
			// What is mounted in a share is not seen through the device.
			if _, err := os.Stat(w.dir + "/a/sub/tag"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the inner share is below the device: %v", err)
			}
			w.apply(inner)
			w.shows(map[string]string{"/work/tag": "", "/work/sub": "b"})
			w.apply(outer, inner)
			w.shows(both)
			outer := outer
			outer.Tag = "c"
			w.apply(outer, inner)
			w.shows(map[string]string{"/work": "c", "/work/sub": "b"})
			w.apply(outer)
			if got := w.table(); len(got) != 1 {
				t.Errorf("mounts: %v", got)
			}
		})
	}
}

func TestPaths(t *testing.T) {
	w := newWorld(t)
	long := "/tmp" + strings.Repeat("/"+strings.Repeat("n", 200), 15)
	paths := []string{"/tmp/x", "/a b", "/new\nline", "/caf\u00e9/\u00fc", "/back\\slash'\"$(x)", "/tmp/x-y", long}
	var shares []api.Share
	want := map[string]string{}
	for _, p := range paths {
		shares = append(shares, api.Share{Path: p, Tag: "a"})
		want[p] = "a"
	}
	w.apply(shares...)
	w.shows(want)
	w.apply()
	for p := range want {
		want[p] = ""
	}
	w.shows(want)
	if _, err := os.Stat(w.root + "/tmp"); err != nil {
		t.Errorf("a directory that nobody made is gone: %v", err)
	}
}

// A share that cannot be had names itself and keeps back no other.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	w.do(unix.Mount("", w.root, "", unix.MS_REMOUNT|unix.MS_BIND, ""), os.WriteFile(w.root+"/file", nil, 0o600))
	for _, c := range []struct {
		share api.Share
		want  string
	}{
		{api.Share{Path: "/link/x", Tag: "a"}, "share /link/x: link on its path is a symlink"},
		{api.Share{Path: "/link", Tag: "a"}, "share /link: link on its path is a symlink"},
		{api.Share{Path: "/file/x", Tag: "a"}, "share /file/x: file on its path is no directory"},
		{api.Share{Path: "/none", Tag: "none"}, "share /none: open the host's directory"},
		{api.Share{Path: "/usr/src", Tag: "a"}, "cannot share /usr/src: the machine's own system is at /usr"},
		{api.Share{Path: "/x", Tag: "../root"}, "tag"},
		{api.Share{Path: "/good", Tag: "a"}, "share /good is there twice"},
		{api.Share{Path: "/" + strings.Repeat("n", 256), Tag: "a"}, "file name too long"},
	} {
		err := w.Apply(t.Context(), []api.Share{{Path: "/good", Tag: "b"}, c.share})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v: want an error with %q", c.share, err, c.want)
		}
		w.shows(map[string]string{"/good": "b", "/link/x": ""})
	}
	w.apply(api.Share{Path: "/good", Tag: "b"})
	if got := w.table(); len(got) != 1 {
		t.Errorf("mounts: %v", got)
	}
}

// When the host takes away the directory that a share is on, the kernel takes the mount along; the next Apply repairs it.
func TestRepair(t *testing.T) {
	w := newWorld(t)
	shares := []api.Share{{Path: "/work", Tag: "a"}, {Path: "/work/sub", Tag: "b"}}
	w.apply(shares...)
	w.do(unix.Unmount(w.root+"/work/sub", unix.MNT_DETACH))
	w.apply(shares...)
	w.shows(map[string]string{"/work": "a", "/work/sub": "b"})
}

func TestDevice(t *testing.T) {
	t.Run("comes late", func(t *testing.T) {
		w := newWorld(t)
		plugged := make(chan struct{})
		mount := w.mount
		w.devices = func() <-chan struct{} { return plugged }
		w.mount = func(dir string) error {
			select {
			case <-plugged:
				return mount(dir)
			default:
				close(plugged)
				return unix.EINVAL
			}
		}
		w.do(w.Mount(t.Context()), w.Mount(t.Context()))
		w.apply(api.Share{Path: "/work", Tag: "a"})
		w.shows(map[string]string{"/work": "a"})
		if w.mounts != 1 {
			t.Errorf("mounted %d times", w.mounts)
		}
	})
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"never comes": {unix.EINVAL, "no device has the tag coracle: context canceled"},
		"no driver":   {unix.ENODEV, "mount shared directories: no such device"},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(slog.New(slog.DiscardHandler), func() <-chan struct{} { return nil })
			s.dir = t.TempDir()
			s.mount = func(string) error { return c.err }
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			err := s.Apply(ctx, []api.Share{{Path: "/work", Tag: "a"}, {Path: "/usr", Tag: "a"}})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "/usr") {
				t.Errorf("Apply() = %v", err)
			}
			if err := s.Apply(ctx, nil); err != nil {
				t.Errorf("Apply of nothing = %v", err)
			}
		})
	}
}

// A share's mounts spread to who asks for it, as a container with the propagation rslave does.
func TestSpreads(t *testing.T) {
	w := newWorld(t)
	other := filepath.Join(filepath.Dir(w.root), "container")
	w.do(os.Mkdir(other, 0o755), unix.Mount(w.root, other, "", unix.MS_BIND|unix.MS_REC, ""), unix.Mount("", other, "", unix.MS_SLAVE, ""))
	w.apply(api.Share{Path: "/work", Tag: "a"})
	if got, err := os.ReadFile(other + "/work/tag"); string(got) != "a" {
		t.Errorf("the other sees %q: %v", got, err)
	}
	w.apply()
	if _, err := os.Stat(other + "/work"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the other still sees the share: %v", err)
	}
}

func TestConcurrentApply(t *testing.T) {
	w := newWorld(t)
	s := w.Shares
	s.mount = func(string) error { return unix.ENODEV } // other threads have no mounts of their own to change
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := s.Apply(t.Context(), []api.Share{{Path: "/work", Tag: "a"}}); !errors.Is(err, unix.ENODEV) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}
