//go:build linux

package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

// imageDir is the guest image that the tests boot. They skip unless they are asked for, and fail where it is then missing.
func imageDir(t testing.TB, arch string) string {
	t.Helper()
	if os.Getenv("CORACLE_VM") != "1" {
		t.Skip("boots virtual machines: run `make test`, or set CORACLE_VM=1 where `make images` has run")
	}
	dir := os.Getenv("CORACLE_IMAGE")
	if dir == "" || arch != runtime.GOARCH {
		dir = filepath.Join("..", "..", "build", "image", arch)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "manifest.json")); err != nil {
		t.Fatalf("no guest image (%v): run `make images`, or set CORACLE_IMAGE to an image's directory", err)
	}
	return dir
}

// kernel prefers the unpacked one, which starts sooner.
func kernel(dir string) string {
	if elf := filepath.Join(dir, "vmlinux"); readable(elf) == nil {
		return elf
	}
	return filepath.Join(dir, "vmlinuz")
}

// testInitrd is the image's initramfs with the test guest for its init.
func testInitrd(t testing.TB, dir, arch string) string {
	t.Helper()
	tmp := t.TempDir()
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(tmp, "init"), "../vmtest/testguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the test guest: %v\n%s", err, out)
	}
	init, err := os.ReadFile(filepath.Join(tmp, "init"))
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := os.ReadFile(filepath.Join(dir, "initrd"))
	if err != nil {
		t.Fatal(err)
	}
	all := bytes.NewBuffer(initrd)
	pad(all)
	member(all, "init", 0o100755, init)
	member(all, "TRAILER!!!", 0, nil)
	path := filepath.Join(tmp, "initrd")
	if err := os.WriteFile(path, all.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// member appends one file of a newc archive (Linux's Documentation/driver-api/early-userspace/buffer-format.rst).
func member(b *bytes.Buffer, name string, mode int, data []byte) {
	fmt.Fprintf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)
	pad(b)
	b.Write(data)
	pad(b)
}

func pad(b *bytes.Buffer) { b.Write(make([]byte, -b.Len()&3)) }

// testConfig makes the configurations of machines whose guest behaves.
func testConfig(t testing.TB, arch string) func(t *testing.T) vm.Config {
	dir := imageDir(t, arch)
	initrd := testInitrd(t, dir, arch)
	addNetwork(t, dir, initrd)
	return func(t *testing.T) vm.Config {
		tmp := t.TempDir()
		data := filepath.Join(tmp, "a disk, with a comma.img")
		if err := os.WriteFile(data, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		return vm.Config{
			Arch: arch, Name: "vmtest", CPUs: 2, Memory: 512 << 20, Kernel: kernel(dir), Initrd: initrd,
			Disks: []vm.Disk{
				{Path: filepath.Join(dir, "root.erofs"), Serial: "coracle-root", ReadOnly: true},
				{Path: data, Serial: "coracle-data"},
			},
			RunDir: tmp, Console: filepath.Join(tmp, "console.log"),
		}
	}
}

func TestVM(t *testing.T) {
	vmtest.Run(t, vmtest.Subject{
		Driver: New(vmtest.Logger(testing.Verbose()), filepath.Join(t.TempDir(), "qemu.json")),
		Config: testConfig(t, runtime.GOARCH),
		Boot:   2 * time.Minute, Settle: 10 * time.Second,
	})
}

// TestVMOtherArchitecture boots a guest of the architecture that the host does not have.
func TestVMOtherArchitecture(t *testing.T) {
	arch := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	if os.Getenv("CORACLE_VM") == "1" {
		if _, err := os.Stat(filepath.Join("..", "..", "build", "image", arch)); err != nil {
			t.Skipf("no image for %s: run `make images-%s`", arch, arch)
		}
	}
	vmtest.Run(t, vmtest.Subject{
		Driver: New(vmtest.Logger(testing.Verbose()), ""),
		Config: testConfig(t, arch),
		Boot:   3 * time.Minute, Settle: 10 * time.Second,
	})
}

// TestRealErrors is what the real QEMU says of bad input.
func TestRealErrors(t *testing.T) {
	config := testConfig(t, runtime.GOARCH)
	d := New(vmtest.Logger(testing.Verbose()), "")
	open := func(t *testing.T, cfg vm.Config) vm.Machine {
		t.Helper()
		m, err := d.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Stop(context.Background()) })
		return m
	}
	garbage := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage, bytes.Repeat([]byte("garbage "), 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(t.TempDir(), "half")
	whole, err := os.ReadFile(config(t).Kernel)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(half, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	busy := config(t)
	if err := open(t, busy).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func(*vm.Config)
		class  error
	}{
		{"a kernel that is none", func(c *vm.Config) { c.Kernel = garbage }, vm.ErrAssetCorrupt},
		{"a truncated kernel", func(c *vm.Config) { c.Kernel = half }, vm.ErrAssetCorrupt},
		{"more memory than there is", func(c *vm.Config) { c.Memory = 1 << 50 }, vm.ErrNoMemory},
		{"a disk that another machine uses", func(c *vm.Config) { c.Disks = busy.Disks }, vm.ErrRunning},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := config(t)
			c.change(&cfg)
			err := open(t, cfg).Start(t.Context())
			t.Log(err)
			if !errors.Is(err, c.class) {
				t.Errorf("error of another class than %q", c.class)
			}
		})
	}
}

// BenchmarkStart is the launch of QEMU until the virtual CPUs run, and the plug pulled.
func BenchmarkStart(b *testing.B) {
	dir := imageDir(b, runtime.GOARCH)
	d := New(vmtest.Logger(false), filepath.Join(b.TempDir(), "qemu.json"))
	cfg := vm.Config{Name: "bench", CPUs: 2, Memory: 2 << 30, Kernel: kernel(dir), Initrd: filepath.Join(dir, "initrd")}
	var starts time.Duration
	for b.Loop() {
		m, err := d.Open(b.Context(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		begin := time.Now()
		if err := m.Start(b.Context()); err != nil {
			b.Fatal(err)
		}
		starts += time.Since(begin)
		if err := m.Stop(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(starts.Milliseconds())/float64(b.N), "ms/start")
}
