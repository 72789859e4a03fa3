//go:build linux

package share

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/sys/unix"
)

// On a plain directory the operations do what they say; that is all that can be seen of them without a FUSE mount.
func TestReplay(t *testing.T) {
	dir := t.TempDir()
	s := openStream(t, dir)
	mode := func(name string) uint32 {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			return 0
		}
		return st.Mode
	}
	for _, c := range []struct {
		op   api.Replay
		name string
		want uint32 // its mode after
	}{
		{api.Replay{Op: api.ReplayMkdir, Path: []byte("d"), Mode: unix.S_IFDIR | 0o755}, "d", unix.S_IFDIR | 0o755},
		{api.Replay{Op: api.ReplayCreate, Path: []byte("d/\xff\n"), Mode: unix.S_IFREG | 0o644}, "d/\xff\n", unix.S_IFREG | 0o644},
		{api.Replay{Op: api.ReplayAttrib, Path: []byte("d/\xff\n"), Mode: unix.S_IFREG | 0o600}, "d/\xff\n", unix.S_IFREG | 0o600},
		{api.Replay{Op: api.ReplayModify, Path: []byte("d/\xff\n"), Size: 7}, "d/\xff\n", unix.S_IFREG | 0o600},
		{api.Replay{Op: api.ReplayRename, Path: []byte("d/\xff\n"), To: []byte("f")}, "f", unix.S_IFREG | 0o600},
		{api.Replay{Op: api.ReplayLink, Path: []byte("l"), Mode: unix.S_IFLNK | 0o777}, "l", unix.S_IFLNK | 0o777},
		{api.Replay{Op: api.ReplayLink, Path: []byte("p"), Mode: unix.S_IFIFO | 0o644}, "p", unix.S_IFIFO | 0o644},
		{api.Replay{Op: api.ReplayAttrib, Path: []byte("p"), Mode: unix.S_IFIFO | 0o600}, "p", unix.S_IFIFO | 0o600},
		{api.Replay{Op: api.ReplayLink, Path: []byte("s"), Mode: unix.S_IFSOCK | 0o755}, "s", unix.S_IFSOCK | 0o755},
		{api.Replay{Op: api.ReplayUnlink, Path: []byte("p")}, "p", 0},
		{api.Replay{Op: api.ReplayRmdir, Path: []byte("d")}, "d", 0},
	} {
		if err := s.do(c.op); err != "" {
			t.Errorf("%+v: %s", c.op, err)
		}
		if got := mode(c.name); got != c.want {
			t.Errorf("%+v: mode %o: want %o", c.op, got, c.want)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "f")); err != nil || st.Size() != 7 {
		t.Errorf("modified: %v, %v", st, err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", s.thread)); err != nil {
		t.Errorf("the thread of the stream is none of ours: %v", err)
	}
}

// Nothing leads out of the directory, is opened, or blocks; and the stream goes on after each.
func TestReplayRefuses(t *testing.T) {
	top := t.TempDir()
	dir, out := top+"/dir", top+"/out"
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Mkdir(out, 0o755), os.Symlink("../out", dir+"/link"), os.WriteFile(out+"/f", []byte("safe"), 0o644),
		os.Symlink("../out/f", dir+"/file"), unix.Mkfifo(dir+"/pipe", 0o644), os.Mkdir(dir+"/d", 0o755)); err != nil {
		t.Fatal(err)
	}
	s := openStream(t, dir)
	for _, c := range []struct {
		op, path, to, want string
	}{
		{api.ReplayCreate, "link/x", "", "too many levels of symbolic links"},
		{api.ReplayUnlink, "link/f", "", "too many levels of symbolic links"},
		{api.ReplayCreate, "../out/x", "", "invalid cross-device link"},
		{api.ReplayCreate, "/out/x", "", "invalid cross-device link"},
		{api.ReplayCreate, "d/../../out/x", "", "invalid cross-device link"},
		{api.ReplayRename, "d", "../out/d", "invalid cross-device link"},
		{api.ReplayRename, "d", "link/d", "too many levels of symbolic links"},
		{api.ReplayRmdir, "..", "", "senseless path"},
		{api.ReplayRmdir, "d/.", "", "senseless path"},
		{api.ReplayRmdir, "d/", "", "senseless path"},
		{api.ReplayRmdir, "", "", "senseless path"},
		{api.ReplayUnlink, "d\x00x", "", "senseless path"},
		{api.ReplayModify, "file", "", "invalid argument"}, // the link itself, which has no size
		{api.ReplayAttrib, "file", "", "not supported"},
		{api.ReplayModify, "pipe", "", "invalid argument"},
		{api.ReplayCreate, "pipe", "", "file exists"},
		{api.ReplayModify, "d", "", "is a directory"},
		{api.ReplayUnlink, "d", "", "is a directory"},
		{api.ReplayUnlink, "none", "", "no such file"},
		{api.ReplayCreate, strings.Repeat("n", 256), "", "file name too long"},
		{api.ReplayCreate, strings.Repeat("d/", 4096) + "x", "", "file name too long"},
		{"chroot", "d", "", `unknown operation "chroot"`},
		{"", "d", "", `unknown operation ""`},
	} {
		if err := s.do(api.Replay{Op: c.op, Path: []byte(c.path), To: []byte(c.to)}); !strings.Contains(err, c.want) {
			t.Errorf("%s %.40q: %q: want an error with %q", c.op, c.path, err, c.want)
		}
	}
	if err := s.do(api.Replay{Op: api.ReplayLink, Path: []byte("device"), Mode: unix.S_IFDIR | 0o755}); err == "" {
		t.Error("mknod made a directory")
	}
	if names, _ := filepath.Glob(out + "/*"); len(names) != 1 {
		t.Errorf("outside there is %v", names)
	}
	if got, _ := os.ReadFile(out + "/f"); string(got) != "safe" {
		t.Errorf("a file outside was changed to %q", got)
	}
}

func TestReplayEnds(t *testing.T) {
	for name, c := range map[string]struct{ send, want string }{
		"no JSON":     {"hello\n", "parse replay"},
		"longer line": {strings.Repeat("x", maxReplay+1), "read replay"},
		"cut off":     {`{"op":"create"`, "parse replay"},
		"closed":      {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			here, there := net.Pipe()
			done := make(chan error, 1)
			go func() { done <- replay(t.Context(), there, t.TempDir()) }()
			go func() {
				_, _ = io.CopyN(io.Discard, here, 4)
				go func() { _, _ = io.Copy(io.Discard, here) }()
				_, _ = io.WriteString(here, c.send)
				here.Close()
			}()
			err := <-done
			if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("replay() = %v: want %q", err, c.want)
			}
		})
	}
	t.Run("the context ends", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		here, there := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- replay(ctx, there, t.TempDir()) }()
		go cancel()
		_, _ = io.Copy(io.Discard, here) // until the other end is closed
		if err := <-done; err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	})
}

// Serve waits for the device, and no longer than its context.
func TestServe(t *testing.T) {
	s := New(slog.New(slog.DiscardHandler), nil)
	s.dir = t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(ctx, there) }()
	_ = here.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if n, err := here.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("before the device is mounted: %d bytes, %v", n, err)
	}
	close(s.mounted)
	_ = here.SetDeadline(time.Time{})
	if _, err := here.Read(make([]byte, 1)); err != nil {
		t.Errorf("once the device is mounted: %v", err)
	}
	here.Close()
	<-done

	s.mounted = make(chan struct{})
	here, there = net.Pipe()
	cancel()
	s.Serve(ctx, there)
	if _, err := here.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
}

// Whatever the path, its directory is beneath the root, and the last name is one name.
func FuzzParent(f *testing.F) {
	top := f.TempDir()
	root := top + "/root"
	if err := errors.Join(os.MkdirAll(root+"/a/b", 0o755), os.Symlink("/", root+"/out"), os.Symlink("..", root+"/a/up")); err != nil {
		f.Fatal(err)
	}
	fd, err := unix.Open(root, dirOnly, 0)
	if err != nil {
		f.Fatal(err)
	}
	defer unix.Close(fd)
	for _, p := range []string{"x", "a/b/c", "../x", "out/etc/passwd", "a/up/up/x", "/etc/x", "a//b", "a/./b", "\x00", ""} {
		f.Add([]byte(p))
	}
	f.Fuzz(func(t *testing.T, path []byte) {
		parent, name, err := replayer{fd}.parent(path)
		if err != nil {
			return
		}
		defer unix.Close(parent)
		at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", parent))
		if err != nil || at != root && !strings.HasPrefix(at, root+"/") {
			t.Errorf("%q leads to %q: %v", path, at, err)
		}
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			t.Errorf("%q has the last name %q", path, name)
		}
	})
}
