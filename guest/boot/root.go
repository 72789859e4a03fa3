//go:build linux

package boot

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Where the initramfs mounts the image and builds the root.
const (
	imageDir = "/image"
	newRoot  = "/sysroot"
)

// SwitchRoot makes the EROFS image on device the root of this process and all that follow, and frees what the initramfs
// held. The root itself is a small tmpfs with the image's directories bound into it, since shares can be at any path and the
// image has none of these; it is mounted read-only like them, and who has to make a directory to mount on (guest/share) does
// it in a writable clone of the mount. The old root stays below, empty: it cannot be unmounted, and runc's pivot_root needs a
// root that is a mount.
func SwitchRoot(device string) error {
	if err := os.MkdirAll(imageDir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, imageDir, "erofs", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount root from %s: %w", device, err)
	}
	if err := buildRoot(imageDir, newRoot); err != nil {
		return fmt.Errorf("build root: %w", err)
	}
	if err := unix.Unmount(imageDir, 0); err != nil { // what is bound keeps it
		return fmt.Errorf("leave root image: %w", err)
	}
	old, err := os.OpenRoot("/")
	if err != nil {
		return err
	}
	defer old.Close()
	for _, m := range early {
		if err := unix.Mount(m.target, filepath.Join(newRoot, m.target), "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", m.target, err)
		}
	}
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	for _, name := range []string{"lib", "init", "coracle", "image"} {
		_ = old.RemoveAll(name) // it only costs memory
	}
	return nil
}

// buildRoot makes root a tmpfs that shows what image holds: its symlinks and its empty directories made again, so that more
// can be made in these, all else bound. The tmpfs holds names alone.
func buildRoot(image, root string) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("root", root, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "mode=0755,size=4m"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	entries, err := os.ReadDir(image)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := rebuild(filepath.Join(image, e.Name()), filepath.Join(root, e.Name()), e); err != nil {
			return err
		}
	}
	if err := unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("make it read-only: %w", err)
	}
	return nil
}

func rebuild(from, to string, e os.DirEntry) error {
	switch {
	case e.Type() == os.ModeSymlink:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		return os.Symlink(target, to)
	case e.IsDir():
		info, err := e.Info()
		if err != nil {
			return err
		}
		if err := os.Mkdir(to, info.Mode().Perm()); err != nil {
			return err
		}
		if held, err := os.ReadDir(from); err != nil || len(held) == 0 {
			return err
		}
	default:
		if err := os.WriteFile(to, nil, 0o444); err != nil {
			return err
		}
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", to, err)
	}
	return nil
}
