//go:build linux

// Package boot brings a kernel with nothing but an initramfs to a guest in which services can run: it reads what the host
// says of this boot, loads modules, finds the disks, makes the root image the root, the data disk a file system, and mounts
// what containers expect. It is also modprobe, when the kernel asks for more modules later. Each step is a function of its
// own; guest/agent runs them side by side as their needs are met, and times them.
package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/sys/unix"
)

// ReadConfig reads what the host says of this boot from path and removes it, so that nothing that runs later sees the
// secret.
func ReadConfig(path string) (*api.Boot, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read boot configuration: %w (was the guest started by coracled?)", err)
	}
	if err := os.Remove(path); err != nil {
		return nil, fmt.Errorf("remove boot configuration: %w", err)
	}
	return ParseConfig(data)
}

// ParseConfig decodes and checks a boot configuration.
func ParseConfig(data []byte) (*api.Boot, error) {
	var b api.Boot
	if err := json.Unmarshal(data, &b); err != nil {
		return nil, fmt.Errorf("parse boot configuration: %w", err)
	}
	if b.Version != api.Version {
		return nil, fmt.Errorf("boot configuration has protocol version %d, this guest speaks %d", b.Version, api.Version)
	}
	if len(b.Secret) != api.SecretLen {
		return nil, fmt.Errorf("boot configuration has a secret of %d bytes: want %d", len(b.Secret), api.SecretLen)
	}
	return &b, nil
}

// PowerOff ends the machine at once. It returns only where that is refused.
func PowerOff() error {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	return errors.New("power off: the kernel went on")
}

// Kernel is the running kernel's release, as uname -r prints it.
func Kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
