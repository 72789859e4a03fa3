//go:build linux

package boot

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestBuildRoot(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread and its mounts end with the test
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skip("needs mounts of its own: run the tests as root: ", err)
	}
	top := t.TempDir()
	image, root := top+"/image", top+"/root"
	if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), os.MkdirAll(image+"/usr/bin", 0o755),
		os.WriteFile(image+"/usr/bin/sh", []byte("#!"), 0o755), os.Symlink("usr/bin", image+"/bin"), os.Mkdir(image+"/home", 0o755),
		os.Mkdir(image+"/root", 0o700), os.WriteFile(image+"/file", []byte("text"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := buildRoot(image, root); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	for path, want := range map[string]string{"bin/sh": "#!", "usr/bin/sh": "#!", "file": "text"} {
		if got, err := os.ReadFile(filepath.Join(root, path)); err != nil || string(got) != want {
			t.Errorf("%s holds %q: %v", path, got, err)
		}
	}
	if info, err := os.Stat(root + "/root"); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("/root: %v, %v", info, err)
	}
	for _, dir := range []string{"/new", "/home/u"} {
		if err := os.Mkdir(root+dir, 0o755); !errors.Is(err, unix.EROFS) {
			t.Errorf("anyone can make %s: %v", dir, err)
		}
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"/new", "/home/u"} {
		if err := os.Mkdir(root+dir, 0o755); err != nil {
			t.Errorf("a place for a share cannot be made: %v", err)
		}
	}
}
