//go:build linux

package qemu

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm/vmtest"
)

// TestProbeGuest runs the KVM probe's guests under emulation, which must pass them.
func TestProbeGuest(t *testing.T) {
	if os.Getenv("CORACLE_VM") != "1" {
		t.Skip("runs QEMU: run `make test`, or set CORACLE_VM=1")
	}
	for arch, p := range platforms {
		binary, err := exec.LookPath(p.binary)
		if err != nil {
			t.Fatalf("no %s: install %s", p.binary, p.pkg)
		}
		begin := time.Now()
		if err := runProbe(t.Context(), arch, tcg, binary); err != nil {
			t.Errorf("%s: %v", arch, err)
		}
		t.Logf("%s: %v", arch, time.Since(begin))
	}
}

// TestProbeHere says what KVM does on this host, within a second or so the first time and at once from then on.
func TestProbeHere(t *testing.T) {
	if os.Getenv("CORACLE_VM") != "1" {
		t.Skip("runs QEMU: run `make test`, or set CORACLE_VM=1")
	}
	t.Setenv(accelEnv, "")
	cache := filepath.Join(t.TempDir(), "qemu.json")
	begin := time.Now()
	first, err := New(vmtest.Logger(false), cache).Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	begin = time.Now()
	second, err := New(vmtest.Logger(false), cache).Probe(t.Context())
	if err != nil || second != first {
		t.Errorf("second probe %+v, %v; the first %+v", second, err, first)
	}
	again := time.Since(begin)
	t.Logf("%+v; took %v, then %v", first, took, again)
	if took > probeLaunch+5*time.Second {
		t.Errorf("the first probe took %v", took)
	}
	if again > took/2 {
		t.Errorf("the second probe took %v, the first %v: it remembered nothing", again, took)
	}
	if (first.Reason == "") != (first.Accelerator == kvm) {
		t.Errorf("%+v: want a reason where, and only where, KVM is not used", first)
	}
}

func TestJudge(t *testing.T) {
	for scenario, text := range map[string]string{
		"probe good": "", "probe fails": "exit status 65", "probe stops": "gave up", "probe hangs": "hangs", "inexplicable": "stars are wrong",
	} {
		t.Run(scenario, func(t *testing.T) {
			fakePath(t, scenario)
			binary, err := exec.LookPath("qemu-system-x86_64")
			if err != nil {
				t.Fatal(err)
			}
			err = runProbe(t.Context(), "amd64", kvm, binary)
			if (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), text) {
				t.Errorf("error %v, want %q", err, text)
			}
			if unsure := errors.Is(err, errUnsure); unsure != (scenario == "inexplicable") {
				t.Errorf("error %v: unsure is %v", err, unsure)
			}
		})
	}
}

func TestFirmware(t *testing.T) {
	rom := firmware("amd64")
	if len(rom) != 64<<10 || rom[0xfff0] != 0xea || rom[0] != 0xfa {
		t.Errorf("%d bytes, %#x at the reset vector, %#x at the start", len(rom), rom[0xfff0], rom[0])
	}
}
