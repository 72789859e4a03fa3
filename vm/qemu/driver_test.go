//go:build linux

package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

func TestProbe(t *testing.T) {
	for _, c := range []struct {
		name, scenario, version string
		class                   error
		text                    string
	}{
		{"debian 12", "version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", "7.2.22", nil, ""},
		{"newer", "version 10.0.50 (v10.0.0-rc1-dirty)", "10.0.50", nil, ""},
		{"without a patch level", "version 9.1", "9.1", nil, ""},
		{"too old", "version 6.2.0 (Debian 1:6.2)", "", vm.ErrNotSupported, "7.2 or later"},
		{"just too old", "version 7.1.99", "", vm.ErrNotSupported, "7.2 or later"},
		{"no version", "version of a poem", "", vm.ErrNotSupported, "does not tell"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fakePath(t, c.scenario)
			caps, err := New(vmtest.Logger(false), "").Probe(t.Context())
			if !errors.Is(err, c.class) || err != nil && !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v; want class %v and %q", err, c.class, c.text)
			}
			if caps.Version != c.version {
				t.Errorf("version %q, want %q", caps.Version, c.version)
			}
		})
	}
}

func TestNotInstalled(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := New(vmtest.Logger(false), "").Probe(t.Context())
	if !errors.Is(err, vm.ErrNotInstalled) || !strings.Contains(err.Error(), platforms[runtime.GOARCH].pkg) {
		t.Errorf("probe: %v; want %v and the package's name", err, vm.ErrNotInstalled)
	}
	cfg := goodConfig(t)
	cfg.Arch = "arm64"
	if _, err := New(vmtest.Logger(false), "").Open(t.Context(), cfg); !errors.Is(err, vm.ErrNotInstalled) || !strings.Contains(err.Error(), "qemu-system-arm") {
		t.Errorf("open: %v; want %v and the package's name", err, vm.ErrNotInstalled)
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*vm.Config)
		class  error
	}{
		{"good", func(*vm.Config) {}, nil},
		{"good mac", func(c *vm.Config) { c.Network.MAC = "52:54:00:12:34:56" }, nil},
		{"no cpu", func(c *vm.Config) { c.CPUs = 0 }, vm.ErrConfig},
		{"many cpus", func(c *vm.Config) { c.CPUs = 1000 }, vm.ErrConfig},
		{"odd memory", func(c *vm.Config) { c.Memory++ }, vm.ErrConfig},
		{"no memory", func(c *vm.Config) { c.Memory = 0 }, vm.ErrConfig},
		{"negative memory", func(c *vm.Config) { c.Memory = -1 << 30 }, vm.ErrConfig},
		{"no kernel", func(c *vm.Config) { c.Kernel += "x" }, vm.ErrAssetCorrupt},
		{"no initrd", func(c *vm.Config) { c.Initrd = "" }, vm.ErrAssetCorrupt},
		{"empty initrd", func(c *vm.Config) { os.Truncate(c.Initrd, 0) }, vm.ErrAssetCorrupt},
		{"no disk", func(c *vm.Config) { c.Disks[0].Path += "x" }, vm.ErrConfig},
		{"a directory for a disk", func(c *vm.Config) { c.Disks[0].Path = c.RunDir }, vm.ErrConfig},
		{"long serial", func(c *vm.Config) { c.Disks[0].Serial = strings.Repeat("x", 21) }, vm.ErrConfig},
		{"serial with a space", func(c *vm.Config) { c.Disks[0].Serial = "a b" }, vm.ErrConfig},
		{"line break", func(c *vm.Config) { c.Cmdline = "quiet\ninit=/bin/sh" }, vm.ErrConfig},
		{"zero byte", func(c *vm.Config) { c.Name = "a\x00b" }, vm.ErrConfig},
		{"mac with an option", func(c *vm.Config) { c.Network.MAC = "52:54:00:12:34:56,romfile=x" }, vm.ErrConfig},
		{"multicast mac", func(c *vm.Config) { c.Network.MAC = "01:54:00:12:34:56" }, vm.ErrConfig},
		{"mac with dashes", func(c *vm.Config) { c.Network.MAC = "52-54-00-12-34-56" }, vm.ErrConfig},
		{"good share", func(c *vm.Config) { c.FileSystem, c.FileSystemTag = noFiles{}, strings.Repeat("x", 36) }, nil},
		{"share without a tag", func(c *vm.Config) { c.FileSystem = noFiles{} }, vm.ErrConfig},
		{"share with a long tag", func(c *vm.Config) { c.FileSystem, c.FileSystemTag = noFiles{}, strings.Repeat("x", 37) }, vm.ErrConfig},
		{"share with a zero byte", func(c *vm.Config) { c.FileSystem, c.FileSystemTag = noFiles{}, "a\x00b" }, vm.ErrConfig},
		{"good MTU", func(c *vm.Config) { c.Network.MTU = 65535 }, nil},
		{"small MTU", func(c *vm.Config) { c.Network.MTU = 67 }, vm.ErrConfig},
		{"large MTU", func(c *vm.Config) { c.Network.MTU = 65536 }, vm.ErrConfig},
		{"unknown architecture", func(c *vm.Config) { c.Arch = "pdp11" }, vm.ErrNotSupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			fakePath(t, "runs")
			cfg := goodConfig(t)
			c.change(&cfg)
			_, err := New(vmtest.Logger(false), "").Open(t.Context(), cfg)
			if !errors.Is(err, c.class) {
				t.Errorf("error %v, want class %v", err, c.class)
			}
		})
	}
}

func TestRemember(t *testing.T) {
	fakePath(t, "runs")
	t.Setenv(accelEnv, "")
	cache := filepath.Join(t.TempDir(), "new", "qemu.json")
	a := New(vmtest.Logger(false), cache)
	f := finding{Key: "k", Binary: "/q", Version: "7.2", Accel: kvm}
	a.remember("amd64", f)
	a.remember("arm64", finding{Key: "other"})
	b := New(vmtest.Logger(false), cache)
	if got, ok := b.recall("amd64"); !ok || got != f {
		t.Errorf("recalled %+v, %v; want %+v", got, ok, f)
	}
	b.found["amd64"] = f
	b.condemn("amd64", "it broke")
	if got, _ := a.recall("amd64"); got.Accel != tcg || got.Reason != "it broke" {
		t.Errorf("recalled %+v after it was condemned", got)
	}
	for _, damage := range []string{"", "{", "null", "[]", `{"amd64": 7}`} {
		if err := os.WriteFile(cache, []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, ok := b.recall("amd64"); ok {
			t.Errorf("recalled %+v from %q", got, damage)
		}
		b.remember("amd64", f)
		if _, ok := b.recall("amd64"); !ok {
			t.Errorf("could not remember after %q", damage)
		}
	}
}

// TestArchitectureOfAnother shows that another architecture's guest is emulated, whatever the host has.
func TestArchitectureOfAnother(t *testing.T) {
	fakePath(t, "runs")
	t.Setenv(accelEnv, "")
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	f, err := New(vmtest.Logger(false), "").find(t.Context(), other)
	if err != nil || f.Accel != tcg || f.Reason == "" {
		t.Errorf("found %+v, %v; want %s with a reason", f, err, tcg)
	}
}

func TestSafeThreads(t *testing.T) {
	for version, want := range map[string]bool{"7.2.22": false, "8.0.5": false, "8.1.0": true, "8.2": true, "10.0.2": true, "": false} {
		if got := safeThreads(version); got != want {
			t.Errorf("safeThreads(%q) = %t", version, got)
		}
	}
}
