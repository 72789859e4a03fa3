//go:build linux

package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// sysctls is what many containers on one kernel need, beyond the kernel's own defaults.
var sysctls = []struct{ name, value string }{
	{"net.ipv4.ip_forward", "1"},
	{"net.ipv6.conf.all.forwarding", "1"},
	{"net.ipv4.ip_nonlocal_bind", "1"}, // a port is published at an address of the host's, which is none of ours
	{"net.ipv6.ip_nonlocal_bind", "1"},
	{"net.core.somaxconn", "4096"},
	{"fs.inotify.max_user_instances", "8192"}, // file watchers of build tools
	{"fs.inotify.max_user_watches", "1048576"},
	{"fs.file-max", "9223372036854775807"},
	{"fs.aio-max-nr", "1048576"},
	{"vm.max_map_count", "1048576"},         // search engines refuse to start below 262144
	{"kernel.keys.root_maxkeys", "1000000"}, // runc makes a session keyring per container
	{"kernel.keys.root_maxbytes", "25000000"},
	{"kernel.pid_max", "4194304"},
	{"kernel.panic", "1"}, // the host sees the machine end, and why in its console log
	{"kernel.panic_on_oops", "1"},
	{"kernel.printk", "4 4 1 7"},
}

// Tune sets the kernel's knobs and this process's limits, which all services inherit. What the kernel lacks is left out of
// it and told in the error; all else is set.
func Tune() error {
	var errs []error
	for _, s := range sysctls {
		path := "/proc/sys/" + strings.ReplaceAll(s.name, ".", "/")
		if err := os.WriteFile(path, []byte(s.value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("set %s: %w", s.name, err))
		}
	}
	const files = 1 << 20
	for _, l := range []struct {
		what  int
		limit uint64
	}{{unix.RLIMIT_NOFILE, files}, {unix.RLIMIT_NPROC, unix.RLIM_INFINITY}, {unix.RLIMIT_CORE, unix.RLIM_INFINITY}} {
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: l.limit, Max: l.limit}); err != nil {
			errs = append(errs, fmt.Errorf("set limit %d: %w", l.what, err))
		}
	}
	return errors.Join(append(errs, controlGroups())...)
}

// controlGroups lets the root's children be limited by every controller that the kernel has (cgroup-v2.rst, "Enabling and
// Disabling"): dockerd looks in its own group for what it can promise.
func controlGroups() error {
	const root = "/sys/fs/cgroup"
	have, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("list cgroup controllers: %w", err)
	}
	on := "+" + strings.Join(strings.Fields(string(have)), " +")
	if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte(on), 0); err != nil {
		return fmt.Errorf("enable cgroup controllers %s: %w", on, err)
	}
	return nil
}
