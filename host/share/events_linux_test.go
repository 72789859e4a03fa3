package share

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/host/share/notify"
	"golang.org/x/sys/unix"
)

// eventually tries until it works or a second has passed.
func eventually(t testing.TB, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// ear is a program in the guest that watches a directory.
type ear struct {
	w     *notify.Watcher
	heard []string
}

func listenIn(t *testing.T, dirs ...string) *ear {
	t.Helper()
	w, err := notify.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	for _, dir := range dirs {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Add(fd); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	return &ear{w: w}
}

// hears waits until exactly these were heard, in this order, and then a little, whether more comes.
func (e *ear) hears(t *testing.T, want ...string) {
	t.Helper()
	e.heard = nil
	limit := time.After(3 * time.Second)
	for {
		select {
		case batch := <-e.w.Events():
			for _, ev := range batch {
				e.heard = append(e.heard, fmt.Sprintf("%v %s", ev.Kind, ev.Name))
			}
			if len(e.heard) >= len(want) {
				limit = time.After(60 * time.Millisecond)
			}
		case <-limit:
			if strings.Join(e.heard, ", ") != strings.Join(want, ", ") {
				t.Fatalf("heard %q, want %q", e.heard, want)
			}
			return
		}
	}
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func reads(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Fatalf("%s is %q, %v, want %q", path, got, err, want)
	}
}

// TestEvents has the host make each kind of change, and looks at what a watcher in the guest hears and what it sees then.
func TestEvents(t *testing.T) {
	f, dir := watched(t)
	host := f.root
	tests := []struct {
		name   string
		before func(t *testing.T)
		change func(t *testing.T)
		hears  []string
		after  func(t *testing.T)
	}{
		{"create", nil, func(t *testing.T) { write(t, host+"/a", "") }, []string{"created a"},
			func(t *testing.T) { reads(t, dir+"/a", "") }},
		{"modify", nil, func(t *testing.T) {
			fd, err := os.OpenFile(host+"/a", os.O_WRONLY, 0)
			must(t, err)
			fd.WriteString("new")
			must(t, fd.Close())
		}, []string{"modified a"}, func(t *testing.T) { reads(t, dir+"/a", "new") }},
		{"modify in place", nil, func(t *testing.T) {
			fd, err := os.OpenFile(host+"/a", os.O_WRONLY, 0)
			must(t, err)
			fd.WriteString("NEW")
			must(t, fd.Close())
		}, []string{"modified a"}, func(t *testing.T) { reads(t, dir+"/a", "NEW") }},
		{"attributes", nil, func(t *testing.T) { must(t, os.Chmod(host+"/a", 0o700)) }, []string{"attributes a"},
			func(t *testing.T) {
				info, err := os.Stat(dir + "/a")
				if err != nil || info.Mode() != 0o700 {
					t.Fatal(info, err)
				}
			}},
		{"rename", nil, func(t *testing.T) { must(t, os.Rename(host+"/a", host+"/b")) }, []string{"moved from a", "moved to b"},
			func(t *testing.T) {
				reads(t, dir+"/b", "NEW")
				if _, err := os.Stat(dir + "/a"); !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}},
		{"delete", nil, func(t *testing.T) { must(t, os.Remove(host+"/b")) }, []string{"removed b"},
			func(t *testing.T) {
				if _, err := os.Stat(dir + "/b"); !os.IsNotExist(err) {
					t.Fatal(err)
				}
			}},
		{"mkdir", nil, func(t *testing.T) { must(t, os.Mkdir(host+"/d", 0o755)) }, []string{"created d"},
			func(t *testing.T) {
				if info, err := os.Stat(dir + "/d"); err != nil || !info.IsDir() {
					t.Fatal(info, err)
				}
			}},
		{"rename of a directory", func(t *testing.T) { write(t, dir+"/d/in", "x") },
			func(t *testing.T) { must(t, os.Rename(host+"/d", host+"/e")) }, []string{"moved from d", "moved to e"},
			func(t *testing.T) { reads(t, dir+"/e/in", "x") }},
		{"rmdir", func(t *testing.T) { must(t, os.Remove(dir+"/e/in")) },
			func(t *testing.T) { must(t, os.Remove(host+"/e")) }, []string{"removed e"}, nil},
		{"symlink", nil, func(t *testing.T) { must(t, os.Symlink("where", host+"/l")) }, []string{"created l"},
			func(t *testing.T) {
				if got, err := os.Readlink(dir + "/l"); got != "where" {
					t.Fatal(got, err)
				}
			}},
		{"pipe", nil, func(t *testing.T) { must(t, unix.Mkfifo(host+"/p", 0o600)) }, []string{"created p"}, nil},
		{"replaced by a rename", func(t *testing.T) { write(t, dir+"/old", "old"); write(t, dir+"/tmp", "new") },
			func(t *testing.T) { must(t, os.Rename(host+"/tmp", host+"/old")) }, []string{"moved from tmp", "moved to old"},
			func(t *testing.T) { reads(t, dir+"/old", "new") }},
		{"never looked at", func(t *testing.T) { time.Sleep(30 * time.Millisecond) },
			func(t *testing.T) { must(t, os.Remove(host+"/old")) }, []string{"removed old"}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if test.before != nil {
				test.before(t)
				time.Sleep(30 * time.Millisecond)
			}
			e := listenIn(t, dir)
			os.Stat(filepath.Join(dir, "b")) // something to remember as missing
			test.change(t)
			e.hears(t, test.hears...)
			if test.after != nil {
				test.after(t)
			}
		})
	}
}

// TestOwnChanges: what the guest does itself is heard once.
func TestOwnChanges(t *testing.T) {
	_, dir := watched(t)
	e := listenIn(t, dir)
	fd, err := os.OpenFile(dir+"/a", os.O_CREATE|os.O_WRONLY, 0o644)
	must(t, err)
	e.hears(t, "created a")
	fd.WriteString("x")
	e.hears(t, "modified a")
	must(t, fd.Close(), os.Chmod(dir+"/a", 0o600))
	e.hears(t, "attributes a")
	must(t, os.Rename(dir+"/a", dir+"/b"))
	e.hears(t, "moved from a", "moved to b")
	must(t, os.Mkdir(dir+"/d", 0o755), os.Remove(dir+"/d"), os.Remove(dir+"/b"))
	e.hears(t, "created d", "removed d", "removed b")
	must(t, os.Symlink("x", dir+"/l"), os.Link(dir+"/l", dir+"/m"))
	e.hears(t, "created l", "created m")
}
