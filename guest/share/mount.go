//go:build linux

package share

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/sys/unix"
)

// dirOnly opens a directory to name it.
const dirOnly = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC

// attach puts a share at its path and returns the mount's id. All goes by descriptors: what happens to names meanwhile leads
// nowhere else.
func (s *Shares) attach(share api.Share) (id uint64, err error) {
	target, err := s.place(share.Path)
	if err != nil {
		return 0, err
	}
	defer unix.Close(target)
	source, err := unix.Open(path.Join(s.dir, share.Tag), dirOnly|unix.O_NOFOLLOW, 0)
	if err != nil {
		return 0, fmt.Errorf("open the host's directory: %w", err)
	}
	defer unix.Close(source)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if share.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	tree, err := clone(source, attr)
	if err != nil {
		return 0, err
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return 0, fmt.Errorf("mount: %w", err)
	}
	return mountID(tree)
}

// clone returns a mount of the directory fd that is nowhere yet.
func clone(fd int, attr unix.MountAttr) (int, error) {
	tree, err := unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, fmt.Errorf("clone mount: %w", err)
	}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(tree)
		return -1, fmt.Errorf("set attributes of mount: %w", err)
	}
	return tree, nil
}

func mountID(fd int) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &st); err != nil {
		return 0, fmt.Errorf("identify mount: %w", err)
	}
	return st.Mnt_id, nil
}

// stands says whether the mount id is what is at path p. It is not when the host has moved the directory that it was on.
func (s *Shares) stands(p string, id uint64) bool {
	fd, err := s.walk(p, step)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	have, err := mountID(fd)
	return err == nil && have == id
}

// detach takes the mount id away from path p, at once for who looks and in the end for who has it open, and removes the
// directories that were made for it.
func (s *Shares) detach(p string, id uint64) error {
	if s.stands(p, id) {
		fd, err := s.walk(p, step)
		if err != nil {
			return err
		}
		err = unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", fd), unix.MNT_DETACH)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("unmount: %w", err)
		}
	}
	for ; s.made[p]; p = path.Dir(p) {
		above, err := s.walk(path.Dir(p), step)
		if err != nil {
			return nil
		}
		err = edit(above, func(fd int) error { return unix.Unlinkat(fd, path.Base(p), unix.AT_REMOVEDIR) })
		unix.Close(above)
		if err != nil { // another share is below, or somebody's file
			return nil
		}
		delete(s.made, p)
	}
	return nil
}

// place opens the directory at path p of the guest, made if need be.
func (s *Shares) place(p string) (int, error) {
	at := ""
	return s.walk(p, func(dir int, name string) (int, error) {
		at += "/" + name
		fd, err := step(dir, name)
		if !errors.Is(err, unix.ENOENT) {
			return fd, err
		}
		if err := makeDir(dir, name); err != nil {
			return -1, fmt.Errorf("make %s: %w", at, err)
		}
		s.made[at] = true
		return step(dir, name)
	})
}

// walk opens path p, element by element.
func (s *Shares) walk(p string, step func(dir int, name string) (int, error)) (int, error) {
	fd, err := unix.Open(s.root, dirOnly, 0)
	if err != nil {
		return -1, err
	}
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		if name == "" {
			break // the root itself
		}
		next, err := step(fd, name)
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

// step opens the directory name in dir, or what is mounted on it.
func step(dir int, name string) (int, error) {
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: dirOnly, Resolve: unix.RESOLVE_NO_SYMLINKS})
	switch {
	case errors.Is(err, unix.ELOOP):
		return -1, fmt.Errorf("%s on its path is a symlink: share the directory that it leads to", name)
	case errors.Is(err, unix.ENOTDIR):
		return -1, fmt.Errorf("%s on its path is no directory", name)
	}
	return fd, err
}

// makeDir makes a directory to mount on, but never one of the host's.
func makeDir(dir int, name string) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil {
		return err
	}
	if fs.Type == unix.FUSE_SUPER_MAGIC {
		return errors.New("the share above does not have it; is it hidden there, or not on the host?")
	}
	return edit(dir, func(fd int) error { return unix.Mkdirat(fd, name, 0o755) })
}

// edit calls f with dir, and where that is mounted read-only, as the guest's root is for everybody else, with a writable
// clone of its mount, which goes away with the call.
func edit(dir int, f func(fd int) error) error {
	err := f(dir)
	if !errors.Is(err, unix.EROFS) {
		return err
	}
	tree, err := clone(dir, unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_RDONLY})
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return f(tree)
}
