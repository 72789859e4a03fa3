package share

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestReplacedRoot: a shared directory that is deleted and made again, or replaced by another, is the one that the guest sees
// where it bound the share; what it had of the old one is gone.
func TestReplacedRoot(t *testing.T) {
	holds := func(path, want string) func() error {
		return func() error {
			got, err := os.ReadFile(path)
			if err == nil && string(got) != want {
				err = fmt.Errorf("it is %q", got)
			}
			return err
		}
	}
	check := func(t *testing.T, f fixture, dir string, found func()) {
		must(t, os.MkdirAll(f.root+"/d/e", 0o755))
		write(t, f.root+"/a", "old")
		write(t, f.root+"/d/e/f", "old")
		must(t, sees(f.root, dir), sees(f.root, dir))
		os.Stat(dir + "/re") // missing, and remembered so

		must(t, os.RemoveAll(f.root), os.Mkdir(f.root, 0o750))
		write(t, f.root+"/re", "again")
		found()
		eventually(t, "what is made again", holds(dir+"/re", "again"))
		eventually(t, "the old is gone", func() error { return sees(f.root, dir) })

		must(t, os.Mkdir(f.root+".new", 0o755), os.Mkdir(f.root+".new/d", 0o755))
		write(t, f.root+".new/d/g", "moved")
		write(t, f.root+".new/re", "third")
		must(t, unix.Renameat2(unix.AT_FDCWD, f.root+".new", unix.AT_FDCWD, f.root, unix.RENAME_EXCHANGE))
		found()
		eventually(t, "what was moved here", holds(dir+"/d/g", "moved"))
		eventually(t, "a file in the place of another", holds(dir+"/re", "third"))
		eventually(t, "all", func() error { return sees(f.root, dir) })
		write(t, dir+"/made", "by the guest")
		reads(t, f.root+"/made", "by the guest")
		write(t, f.root+"/made", "by the host")
		eventually(t, "a change after all", holds(dir+"/made", "by the host"))
	}
	t.Run("heard of", func(t *testing.T) {
		f, dir := watched(t)
		check(t, f, dir, func() {})
	})
	t.Run("when the shares are set", func(t *testing.T) {
		f := serve(t, Config{})
		check(t, f, f.mount(t), func() { must(t, f.SetShares([]Share{{Tag: "s", Path: f.root}})) })
	})
	t.Run("when it is asked for", func(t *testing.T) {
		f := serve(t, Config{})
		dir := f.mount(t)
		write(t, f.root+"/a", "old")
		reads(t, dir+"/a", "old")
		must(t, os.RemoveAll(f.root))
		if _, err := os.Stat(dir + "/a"); !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		must(t, os.Mkdir(f.root, 0o755))
		write(t, f.root+"/a", "new")
		eventually(t, "the new one", holds(dir+"/a", "new"))
	})
}
