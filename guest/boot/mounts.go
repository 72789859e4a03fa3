//go:build linux

package boot

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mount is one mount(2).
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

const noExec = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// early is what the initramfs lacks.
var early = []mount{
	{"proc", "/proc", "proc", noExec, ""},
	{"sysfs", "/sys", "sysfs", noExec, ""},
	{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
}

// late is what the root lacks.
var late = []mount{
	{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=50%"},
	{"tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"tmpfs", "/var", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
	{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
	{"shm", "/dev/shm", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
	{"cgroup2", "/sys/fs/cgroup", "cgroup2", noExec, "nsdelegate,memory_recursiveprot"},
}

// extra is what containers may want and the kernel may lack. The first mount of bpf makes the kernel ask for a module.
var extra = []mount{
	{"mqueue", "/dev/mqueue", "mqueue", noExec, ""},
	{"bpf", "/sys/fs/bpf", "bpf", noExec, "mode=0700"},
	{"securityfs", "/sys/kernel/security", "securityfs", noExec, ""},
}

// dirs are made after late; the mode is as given, whatever the umask.
var dirs = []struct {
	path string
	mode os.FileMode
}{
	{"/run/lock", 0o755}, {"/run/docker-etc", 0o755}, {"/run/containerd-etc", 0o755}, {"/run/cni-etc", 0o755},
	{"/var/lib", 0o755}, {"/var/lib/docker", 0o710}, {"/var/lib/containerd", 0o700}, {"/var/log", 0o755}, {"/var/cache", 0o755},
	{"/var/tmp", 0o777 | os.ModeSticky},
}

var links = []struct{ to, at string }{
	{"/run", "/var/run"}, {"/run/lock", "/var/lock"}, {"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
	{"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"},
}

// binds is what of the data disk appears elsewhere.
var binds = []struct{ from, to string }{
	{DataDir + "/docker", "/var/lib/docker"},
	{DataDir + "/containerd", "/var/lib/containerd"},
	{DataDir + "/root", "/root"},
}

// MountEarly mounts what the first steps in the initramfs need.
func MountEarly() error { return mountAll(early) }

// MountLate mounts and makes what services expect, all but the data disk, and the binds' targets with it.
func MountLate() error {
	unix.Umask(0o022)
	if err := mountAll(late); err != nil {
		return err
	}
	for _, d := range dirs {
		if err := os.MkdirAll(d.path, d.mode.Perm()); err != nil {
			return err
		}
		if err := os.Chmod(d.path, d.mode); err != nil {
			return err
		}
	}
	for _, l := range links {
		if err := os.Symlink(l.to, l.at); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	// Mounts spread into the containers that ask for it, as on a host run by systemd.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}

// MountExtra mounts what no service waits for.
func MountExtra() error { return mountAll(extra) }

// BindData makes the data disk's directories appear where programs look for them.
func BindData() error {
	for _, b := range binds {
		if err := os.MkdirAll(b.from, 0o700); err != nil {
			return err
		}
		if err := unix.Mount(b.from, b.to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", b.to, err)
		}
		// Its own group: else every container's mount below it would appear below DataDir too.
		for _, how := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
			if err := unix.Mount("", b.to, "", how, ""); err != nil {
				return fmt.Errorf("share %s: %w", b.to, err)
			}
		}
	}
	return nil
}

func mountAll(mounts []mount) error {
	var errs []error
	for _, m := range mounts {
		err := os.MkdirAll(m.target, 0o755)
		if err == nil {
			err = unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
		}
		if err != nil && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, fmt.Errorf("mount %s: %w", m.target, err))
		}
	}
	return errors.Join(errs...)
}
