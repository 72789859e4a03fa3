//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vhostuser/vsock"
)

// Driver makes machines with the QEMU that is found in the path.
type Driver struct {
	log    *slog.Logger
	cache  string // the file that remembers verdicts; "" for none
	limits limits

	mu    sync.Mutex
	found map[string]finding // by GOARCH
}

// New makes a driver. cache is a file where it remembers, until the host's next boot, what it found out about KVM, so that a
// probe costs nothing the second time; its directory is made when needed, and "" remembers nothing.
func New(log *slog.Logger, cache string) *Driver {
	return &Driver{log: log, cache: cache, limits: defaults, found: map[string]finding{}}
}

// Name is "qemu".
func (d *Driver) Name() string { return "qemu" }

// Probe runs QEMU for a moment, with a guest of a few instructions where there is a /dev/kvm. The accelerator is "tcg" where
// KVM does not run it; Reason then says why.
func (d *Driver) Probe(ctx context.Context) (vm.Capabilities, error) {
	f, err := d.find(ctx, runtime.GOARCH)
	if err != nil {
		return vm.Capabilities{}, fmt.Errorf("probe QEMU: %w", err)
	}
	if f.Accel == tcg && !safeThreads(f.Version) {
		f.Reason += "; QEMU before 8.1 emulates all CPUs in one thread"
	}
	return vm.Capabilities{
		Accelerator: f.Accel, Version: f.Version, Reason: f.Reason, FileSystem: true, Console: true, Notify: true,
	}, nil
}

// Open checks cfg and what it names, and finds out what the guest would run with.
func (d *Driver) Open(ctx context.Context, cfg vm.Config) (vm.Machine, error) {
	if cfg.Arch == "" {
		cfg.Arch = runtime.GOARCH
	}
	if err := check(cfg); err != nil {
		return nil, fmt.Errorf("open machine %s: %w", cfg.Name, err)
	}
	f, err := d.find(ctx, cfg.Arch)
	if err != nil {
		return nil, fmt.Errorf("open machine %s: %w", cfg.Name, err)
	}
	log := d.log.With("machine", cfg.Name)
	m := &machine{
		launch: launch{cfg: cfg, arch: cfg.Arch, accel: f.Accel, oneThread: !safeThreads(f.Version)}, binary: f.Binary,
		device: vsock.New(guestCID, log), log: log, limits: d.limits,
		state: vm.Stopped, done: make(chan struct{}),
	}
	m.broken = func() { d.condemn(cfg.Arch, "KVM gave up on a guest that it ran") }
	return m, nil
}

// find is what is known about the QEMU for arch; it looks at most once per driver.
func (d *Driver) find(ctx context.Context, arch string) (finding, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if f, ok := d.found[arch]; ok {
		return f, nil
	}
	p, ok := platforms[arch]
	if !ok {
		return finding{}, fmt.Errorf("%w: guests of architecture %q", vm.ErrNotSupported, arch)
	}
	binary, err := exec.LookPath(p.binary)
	if err != nil {
		return finding{}, fmt.Errorf("%w: no %s in the path; on Debian and Ubuntu: sudo apt install %s", vm.ErrNotInstalled, p.binary, p.pkg)
	}
	f, err := d.look(ctx, arch, binary)
	if err == nil {
		d.found[arch] = f
	}
	return f, err
}

// Limits of what one machine can have.
const (
	maxCPUs   = 255
	minMemory = 64 << 20
	maxDisks  = 16
	maxTag    = 36 // bytes of a file-system device's name (virtio 1.2 section 5.11.4)
	// What Linux takes for an ethernet card that carries IPv4.
	minMTU, maxMTU = 68, 65535
)

// check says what is wrong with cfg, as an error of class vm.ErrConfig, or vm.ErrAssetCorrupt for a missing boot file.
func check(cfg vm.Config) error {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{vm.ErrConfig}, args...)...)
	}
	switch {
	case cfg.CPUs < 1 || cfg.CPUs > maxCPUs:
		return invalid("%d CPUs: want 1 to %d", cfg.CPUs, maxCPUs)
	case cfg.Memory < minMemory || cfg.Memory%(1<<20) != 0:
		return invalid("%d bytes of memory: want a multiple of 1 MiB, at least 64 MiB", cfg.Memory)
	case len(cfg.Disks) > maxDisks:
		return invalid("%d disks: want at most %d", len(cfg.Disks), maxDisks)
	case cfg.FileSystem != nil && (cfg.FileSystemTag == "" || len(cfg.FileSystemTag) > maxTag):
		return invalid("tag %q of the file system: want 1 to %d bytes", cfg.FileSystemTag, maxTag)
	case cfg.Network.MTU != 0 && (cfg.Network.MTU < minMTU || cfg.Network.MTU > maxMTU):
		return invalid("MTU of %d bytes: want %d to %d, or 0", cfg.Network.MTU, minMTU, maxMTU)
	}
	words := []string{cfg.Name, cfg.Kernel, cfg.Initrd, cfg.Cmdline, cfg.Console, cfg.Network.MAC, cfg.FileSystemTag}
	for _, d := range cfg.Disks {
		words = append(words, d.Path, d.Serial)
		if len(d.Serial) > 20 || strings.ContainsFunc(d.Serial, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return invalid("disk's serial %q: want at most 20 printable ASCII bytes without spaces", d.Serial)
		}
	}
	for _, w := range words {
		if strings.ContainsAny(w, "\x00\n") {
			return invalid("%q: no setting holds a zero byte or a line break", w)
		}
	}
	if mac := cfg.Network.MAC; mac != "" {
		if hw, err := net.ParseMAC(mac); err != nil || len(hw) != 6 || hw[0]&1 != 0 || strings.Count(mac, ":") != 5 {
			return invalid("MAC address %q: want six bytes with colons, not multicast", mac)
		}
	}
	for _, path := range []string{cfg.Kernel, cfg.Initrd} {
		if err := readable(path); err != nil {
			return fmt.Errorf("%w: %w", vm.ErrAssetCorrupt, err)
		}
	}
	for _, d := range cfg.Disks {
		if err := readable(d.Path); err != nil {
			return fmt.Errorf("%w: %w", vm.ErrConfig, err)
		}
	}
	return nil
}

// readable says why path is not a regular file with something in it.
func readable(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s is missing", path)
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", path)
	case info.Size() == 0:
		return fmt.Errorf("%s is empty", path)
	}
	return nil
}
