//go:build linux

package qemu

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-engine/coracle/vm"
)

// accelEnv names the accelerator and so overrides the probe: "kvm" or "tcg".
const accelEnv = "CORACLE_ACCEL"

// The guests of the probe; their source is beside them.
var (
	//go:embed probe/amd64.bin
	probeAMD64 []byte
	//go:embed probe/arm64.bin
	probeARM64 []byte
)

// finding is what is known about one QEMU on this host.
type finding struct {
	Key     string `json:"key"` // what it holds for: binary, kernel, boot
	Binary  string `json:"binary"`
	Version string `json:"version"`
	Accel   string `json:"accel"`
	Reason  string `json:"reason,omitempty"` // why not KVM
}

// look finds out about binary, or remembers it.
func (d *Driver) look(ctx context.Context, arch, binary string) (finding, error) {
	key := identity(binary)
	f, known := d.recall(arch)
	if !known || f.Key != key {
		version, err := askVersion(ctx, binary)
		if err != nil {
			return finding{}, err
		}
		f = finding{Key: key, Binary: binary, Version: version}
	}
	sure := true
	switch forced := os.Getenv(accelEnv); {
	case forced == kvm || forced == tcg:
		f.Accel, f.Reason = forced, accelEnv+" says so"
		return f, nil
	case arch != runtime.GOARCH:
		f.Accel, f.Reason = tcg, fmt.Sprintf("an %s guest on an %s host is emulated", arch, runtime.GOARCH)
		return f, nil
	default:
		// Whether it may be opened can change within a boot; whether it runs a guest cannot, and takes longer to find out.
		if err := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK); err != nil {
			f.Accel, f.Reason = "", noAccess(err)
			d.remember(arch, f)
			f.Accel = tcg
			return f, nil
		}
		if f.Accel == "" {
			f.Accel, f.Reason, sure = d.tryKVM(ctx, arch, binary)
		}
	}
	if sure {
		d.remember(arch, f)
	}
	return f, ctx.Err()
}

func noAccess(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT):
		return "there is no /dev/kvm (virtualization is off in the firmware, or this is a virtual machine itself)"
	case errors.Is(err, unix.EACCES):
		return "no permission for /dev/kvm; on most systems: sudo usermod -aG kvm $USER, then log in again"
	default:
		return "/dev/kvm: " + err.Error()
	}
}

// identity is what a finding holds for: this binary, this kernel, this boot.
func identity(binary string) string {
	var parts []string
	if info, err := os.Stat(binary); err == nil {
		parts = append(parts, binary, strconv.FormatInt(info.Size(), 10), info.ModTime().UTC().Format(time.RFC3339Nano))
	}
	for _, file := range []string{"/proc/sys/kernel/osrelease", "/proc/sys/kernel/random/boot_id"} {
		b, _ := os.ReadFile(file)
		parts = append(parts, strings.TrimSpace(string(b)))
	}
	return strings.Join(parts, " ")
}

var versionRE = regexp.MustCompile(`version (\d+)\.(\d+)(?:\.\d+)?`)

// safeThreads says whether QEMU of this version may give each emulated CPU a thread. Before 8.1 a CPU could translate an
// instruction while another changed it, and keep what was no longer true: Linux changes its own code while it runs (jump
// labels, through a breakpoint), and about one start in a hundred on a busy host ended in "Oops: int3". 8.1 locks the page
// first (accel/tcg: Always lock pages before translation).
func safeThreads(version string) bool {
	var major, minor int
	fmt.Sscanf(version, "%d.%d", &major, &minor)
	return major > 8 || major == 8 && minor >= 1
}

// parseVersion finds the version in what `qemu --version` prints, and whether it is one we can use: 7.2 and later.
func parseVersion(output string) (string, error) {
	v := versionRE.FindStringSubmatch(output)
	if v == nil {
		return "", fmt.Errorf("%w: QEMU does not tell its version: %.80q", vm.ErrNotSupported, output)
	}
	major, _ := strconv.Atoi(v[1])
	minor, _ := strconv.Atoi(v[2])
	version := strings.TrimPrefix(v[0], "version ")
	if major < 7 || major == 7 && minor < 2 {
		return "", fmt.Errorf("%w: QEMU is %s, 7.2 or later is needed", vm.ErrNotSupported, version)
	}
	return version, nil
}

func askVersion(ctx context.Context, binary string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, "--version")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%w: %s --version: %w", vm.ErrNotSupported, binary, err)
	}
	return parseVersion(string(out))
}

// probeGuest is the command line, and the exit status that means success, of a QEMU that runs the probe's guest from file.
func probeGuest(arch, accel, file string) ([]string, int) {
	words := []string{
		"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot", "-S", "-accel", accel, "-cpu", "max",
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control",
	}
	if arch == "arm64" {
		return append(words, "-machine", "virt,gic-version=max", "-m", "64M", "-kernel", file), 0
	}
	return append(words, "-machine", "q35", "-m", "2M", "-bios", file, "-device", "isa-debug-exit,iobase=0xf4,iosize=1"), 0x21
}

// firmware is the probe's guest as QEMU wants it: on amd64 the 64 KiB below 4 GiB, with a jump to its start where the
// processor begins (16 bytes before the end).
func firmware(arch string) []byte {
	if arch == "arm64" {
		return probeARM64
	}
	rom := bytes.Clone(probeAMD64)
	rom = append(rom, make([]byte, 64<<10-len(rom))...)
	copy(rom[0xfff0:], []byte{0xea, 0x00, 0x00, 0x00, 0xf0}) // ljmp $0xf000, $0
	return rom
}

// tryKVM runs the probe's guest. Some hypervisors offer a /dev/kvm that opens, answers and then cannot run what a kernel
// does, so nothing less will do. It says which accelerator to use, why, and whether that is worth remembering.
func (d *Driver) tryKVM(ctx context.Context, arch, binary string) (accel, reason string, sure bool) {
	begin := time.Now()
	err := runProbe(ctx, arch, kvm, binary)
	d.log.Debug("tried KVM", "took", time.Since(begin), "error", err)
	if err == nil {
		return kvm, "", true
	}
	return tcg, "KVM is there but does not work: " + err.Error(), !errors.Is(err, errUnsure)
}

var errUnsure = errors.New("QEMU did not come up")

// The probe's limits: QEMU's own start, which a busy machine can delay, and the guest's few microseconds.
const (
	probeLaunch = 5 * time.Second
	probeGuestT = time.Second
)

func runProbe(ctx context.Context, arch, accel, binary string) error {
	dir, err := os.MkdirTemp("", "coracle-probe-")
	if err != nil {
		return fmt.Errorf("%w: %w", errUnsure, err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "guest")
	if err := os.WriteFile(file, firmware(arch), 0o600); err != nil {
		return fmt.Errorf("%w: %w", errUnsure, err)
	}
	conn, child, err := socketPair()
	if err != nil {
		return fmt.Errorf("%w: %w", errUnsure, err)
	}
	words, success := probeGuest(arch, accel, file)
	proc, err := run(binary, words, []*os.File{child})
	child.Close()
	if err != nil {
		conn.Close()
		return fmt.Errorf("%w: %w", errUnsure, err)
	}
	stopped := make(chan struct{}, 1)
	mon := newMonitor(conn, func(name string, _ json.RawMessage) {
		if name == "STOP" { // KVM gave up and QEMU paused
			poke(stopped)
		}
	})
	defer func() {
		proc.kill()
		<-proc.done
		mon.close()
	}()
	return judge(ctx, proc, mon, stopped, success)
}

// judge lets the probe's guest run and says how that went.
func judge(ctx context.Context, proc *process, mon *monitor, stopped <-chan struct{}, success int) error {
	launch, cancel := context.WithTimeout(ctx, probeLaunch)
	defer cancel()
	if err := mon.handshake(launch); err != nil {
		mon.close() // it says nothing more
		select {
		case <-proc.done: // KVM may be in another hypervisor's hands, which can change
			err = errors.New(firstLine(proc.stderr.String()))
		case <-launch.Done():
		}
		return fmt.Errorf("%w: %w", errUnsure, err)
	}
	// The answer may get lost where the guest ends QEMU first.
	if err := mon.execute(launch, "cont", nil); launch.Err() != nil {
		return fmt.Errorf("%w: %w", errUnsure, err)
	}
	guest := time.NewTimer(probeGuestT)
	defer guest.Stop()
	select {
	case <-proc.done:
		var exit *exec.ExitError
		code := 0
		if errors.As(proc.err, &exit) {
			code = exit.ExitCode()
		}
		if code != success {
			return fmt.Errorf("a test guest failed (exit status %d)%s", code, suffix(firstLine(proc.stderr.String())))
		}
		return nil
	case <-stopped:
		return errors.New("it gave up on a test guest (nested virtualization?)")
	case <-guest.C:
		return errors.New("a test guest hangs in it")
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", errUnsure, ctx.Err())
	}
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}

// recall reads what was remembered about arch; a file that is missing or damaged holds nothing.
func (d *Driver) recall(arch string) (finding, bool) {
	f, ok := d.memory()[arch]
	return f, ok
}

func (d *Driver) memory() map[string]finding {
	all := map[string]finding{}
	if d.cache == "" {
		return all
	}
	if b, err := os.ReadFile(d.cache); err != nil || json.Unmarshal(b, &all) != nil || all == nil {
		return map[string]finding{}
	}
	return all
}

// remember keeps f for the next process. That it cannot be written costs time alone.
func (d *Driver) remember(arch string, f finding) {
	all := d.memory()
	if d.cache == "" || all[arch] == f {
		return
	}
	all[arch] = f
	b, err := json.Marshal(all)
	if err == nil {
		err = replace(d.cache, b)
	}
	if err != nil {
		d.log.Debug("could not remember what was found about KVM", "error", err)
	}
}

// replace writes file anew: whoever reads it sees the old contents or the new.
func replace(file string, contents []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(contents)
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}

// condemn remembers that KVM does not do on this host, after a machine found out.
func (d *Driver) condemn(arch, reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, ok := d.found[arch]
	if !ok || f.Accel != kvm {
		return
	}
	f.Accel, f.Reason = tcg, reason
	d.found[arch] = f
	d.remember(arch, f)
}
