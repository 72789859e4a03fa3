package share

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestReplacedFile: a file that is bound by itself is the one that has its name on the host, however that is saved.
func TestReplacedFile(t *testing.T) {
	rename := func(t *testing.T, path, content string) {
		write(t, path+".tmp", content)
		must(t, os.Rename(path+".tmp", path))
	}
	again := func(t *testing.T, path, content string) {
		must(t, os.Remove(path))
		write(t, path, content)
	}
	inPlace := func(t *testing.T, path, content string) { write(t, path, content) }
	check := func(t *testing.T, f fixture, dir string) {
		must(t, os.Mkdir(f.root+"/d", 0o755))
		host := f.root + "/d/a.txt"
		write(t, host, "one")
		at := dir + ".file"
		write(t, at, "")
		eventually(t, "the new file", func() error { return unix.Mount(dir+"/d/a.txt", at, "", unix.MS_BIND, "") })
		t.Cleanup(func() { must(t, unix.Unmount(at, unix.MNT_DETACH)) })
		reads(t, at, "one")
		for i, save := range []func(*testing.T, string, string){rename, rename, again, inPlace, rename, inPlace} {
			want := fmt.Sprintf("%d %s", i, strings.Repeat("x", i*1000))
			save(t, host, want)
			for range 2 {
				eventually(t, fmt.Sprintf("save %d", i), func() error {
					got, err := os.ReadFile(at)
					if err == nil && string(got) != want {
						err = fmt.Errorf("it has %d bytes", len(got))
					}
					return err
				})
			}
			eventually(t, "where it lies", func() error { return sees(f.root, dir) })
		}
		write(t, at, "by the guest")
		reads(t, host, "by the guest")
		eventually(t, "where it lies", func() error { return sees(f.root, dir) })

		must(t, os.Remove(host), os.Symlink("/etc/passwd", host))
		eventually(t, "a symlink in its place", func() error {
			if _, err := os.ReadFile(at); !errors.Is(err, unix.ESTALE) && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("it opens: %w", err)
			}
			return nil
		})
	}
	t.Run("watched", func(t *testing.T) {
		f, dir := watched(t)
		check(t, f, dir)
	})
	t.Run("not watched", func(t *testing.T) {
		f := serve(t, Config{})
		check(t, f, f.mount(t))
	})
}

// TestSuccessor: what comes in the place of a file is no way around a share's limits, and nothing of it is to be remembered.
func TestSuccessor(t *testing.T) {
	root := t.TempDir()
	must(t, os.Mkdir(root+"/.ssh", 0o700))
	write(t, root+"/.ssh/id", "secret")
	write(t, root+"/a", "one")
	f := serve(t, Config{}, Share{Tag: "s", Path: root, ReadOnly: true})
	c := f.client(t)
	share := c.root(t, "s")
	st, a := c.lookup(share, "a")
	wants(t, "lookup", st, fuse.OK)
	write(t, root+"/b", "another")
	must(t, os.Rename(root+"/b", root+"/a"))
	for range 2 {
		st, got := c.getattr(a.NodeId)
		wants(t, "getattr", st, fuse.OK)
		if got.Size != 7 || got.AttrValid != 0 || got.AttrValidNsec != 0 {
			t.Errorf("size %d, for %d s", got.Size, got.AttrValid)
		}
		st, o := c.open(a.NodeId, unix.O_RDONLY)
		wants(t, "open", st, fuse.OK)
		if st, data := c.read(a.NodeId, o.Fh, 100); data != "another" || o.OpenFlags&fuse.FOPEN_KEEP_CACHE != 0 {
			t.Errorf("%q, %v, flags %x", data, st, o.OpenFlags)
		}
		c.release(a.NodeId, o.Fh)
		_, now := c.lookup(share, "a") // from here on the name is another node's
		if now.NodeId == a.NodeId {
			t.Error("two files have one number")
		}
	}
	wants(t, "open for writing", first(c.open(a.NodeId, unix.O_RDWR)), fuse.EROFS)
	wants(t, "chmod", first(c.chmod(a.NodeId, 0o777)), fuse.EROFS)
	must(t, os.Remove(root+"/a"))
	wants(t, "nothing in its place", first(c.getattr(a.NodeId)), estale)
	must(t, os.Symlink(".ssh/id", root+"/a"))
	wants(t, "a symlink in its place", first(c.open(a.NodeId, unix.O_RDONLY)), estale)
	must(t, os.Remove(root+"/a"), os.Mkdir(root+"/a", 0o755))
	wants(t, "a directory in its place", first(c.getattr(a.NodeId)), estale)
	if n := f.tree.get(a.NodeId); n == nil || n.lost.name != "a" {
		t.Error("its last name is not known")
	}
}
