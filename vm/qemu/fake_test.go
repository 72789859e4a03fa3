//go:build linux

package qemu

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

// This test binary is the fake QEMU too: it plays the scenario that fakeEnv names.
const fakeEnv = "CORACLE_FAKE_QEMU"

func TestMain(m *testing.M) {
	if s := os.Getenv(fakeEnv); s != "" && strings.HasPrefix(filepath.Base(os.Args[0]), "qemu-system-") {
		os.Exit(fakeQEMU(s))
	}
	os.Exit(m.Run())
}

// fakePath puts a fake QEMU that plays scenario first in the path, and nothing else.
func fakePath(t *testing.T, scenario string) {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range platforms {
		if err := os.Symlink(self, filepath.Join(dir, p.binary)); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
	t.Setenv(fakeEnv, scenario)
	t.Setenv("GORACE", "atexit_sleep_ms=0") // else each fake lingers for a second
	t.Setenv(accelEnv, tcg)
}

// fakeMachine is a machine on a fake QEMU.
func fakeMachine(t *testing.T, scenario string) *machine {
	t.Helper()
	fakePath(t, scenario)
	d := New(vmtest.Logger(testing.Verbose()), "")
	d.limits = limits{start: 2 * time.Second, quit: 300 * time.Millisecond, retry: 10 * time.Millisecond}
	m, err := d.Open(t.Context(), goodConfig(t))
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { m.Stop(t.Context()) })
	return m.(*machine)
}

func goodConfig(t *testing.T) vm.Config {
	t.Helper()
	dir := t.TempDir()
	file := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return vm.Config{
		Name: "boat", CPUs: 2, Memory: 512 << 20, Kernel: file("vmlinuz"), Initrd: file("initrd"), Cmdline: "quiet",
		Disks:  []vm.Disk{{Path: file("root"), Serial: "coracle-root", ReadOnly: true}, {Path: file("data"), Serial: "coracle-data"}},
		RunDir: dir, Console: filepath.Join(dir, "console.log"),
	}
}

var monitorFD = regexp.MustCompile(`id=monitor,fd=(\d+)`)

// scenarios are what a fake QEMU does after the handshake, for each command it gets; "" says nothing.
var scenarios = map[string]func(say func(string), command string) (code int, end bool){
	"runs":      quits,
	"lingers":   quits,
	"poweroff":  func(say func(string), c string) (int, bool) { return after(say, c, "guest-shutdown", 0) },
	"reset":     func(say func(string), c string) (int, bool) { return after(say, c, "guest-reset", 0) },
	"signalled": func(say func(string), c string) (int, bool) { return after(say, c, "host-signal", 0) },
	"aborts": func(say func(string), c string) (int, bool) {
		if c == "cont" {
			fmt.Fprintln(os.Stderr, "qemu: warning: nothing of interest\nqemu: assertion failed in tcg.c")
			return 134, true
		}
		return quits(say, c)
	},
	"stubborn": func(say func(string), c string) (int, bool) {
		if c == "quit" {
			select {}
		}
		return quits(say, c)
	},
	"probe good":  func(say func(string), c string) (int, bool) { return 0x21, c == "cont" },
	"probe fails": func(say func(string), c string) (int, bool) { return 0x41, c == "cont" },
	"probe hangs": quits,
	"probe stops": func(say func(string), c string) (int, bool) {
		code, end := quits(say, c)
		if c == "cont" {
			say(`{"event":"STOP","data":{}}`)
		}
		return code, end
	},
	"refuses": func(say func(string), c string) (int, bool) {
		if c == "cont" {
			say(`{"id":ID,"error":{"class":"GenericError","desc":"Resetting the Virtual Machine is required"}}`)
			return 0, false
		}
		return quits(say, c)
	},
	"babbles": func(say func(string), c string) (int, bool) {
		if c == "cont" {
			say("\x00\xff{{{ this is no JSON")
			select {}
		}
		return quits(say, c)
	},
	"full": func(say func(string), c string) (int, bool) {
		code, end := quits(say, c)
		if c == "cont" {
			if conts++; conts == 1 {
				for range 2 { // two writes were under way
					say(`{"event":"BLOCK_IO_ERROR","data":{"device":"","node-name":"disk1","operation":"write","action":"stop","nospace":true,"reason":"No space left on device"}}`)
				}
				say(`{"event":"STOP","data":{}}`)
			} else {
				say(`{"event":"RESUME","data":{}}`)
				say(`{"event":"BLOCK_IO_ERROR","data":{"node-name":"disk0","operation":"read","action":"report","reason":"Input/output error"}}`)
			}
		}
		return code, end
	},
	"internal": func(say func(string), c string) (int, bool) {
		if c == "query-status" {
			say(`{"id":ID,"return":{"status":"internal-error","running":false}}`)
			return 0, false
		}
		code, end := quits(say, c)
		if c == "cont" {
			say(`{"event":"STOP","data":{}}`)
		}
		return code, end
	},
}

var conts int

func quits(say func(string), command string) (int, bool) {
	say(`{"id":ID,"return":{}}`)
	if command == "quit" {
		say(`{"event":"SHUTDOWN","data":{"guest":false,"reason":"host-qmp-quit"}}`)
	}
	return 0, command == "quit"
}

func after(say func(string), command, reason string, code int) (int, bool) {
	quits(say, command)
	if command == "cont" {
		say(`{"event":"SHUTDOWN","data":{"guest":true,"reason":"` + reason + `"}}`)
	}
	return code, command == "cont"
}

// complain ends the fake before it greets, as QEMU does when it cannot start.
var complain = map[string]string{
	"no memory":    "qemu: cannot set up guest memory 'mem': Cannot allocate memory",
	"locked":       `qemu: -device virtio-blk-pci,drive=disk1: Failed to get "write" lock` + "\nIs another process using the image [/data.img]?",
	"disk full":    "qemu: could not write: No space left on device",
	"bad kernel":   "qemu: could not load PVH kernel",
	"old":          "qemu: -sandbox: invalid option",
	"inexplicable": "qemu: the stars are wrong",
}

func fakeQEMU(scenario string) int {
	args := strings.Join(os.Args[1:], " ")
	if args == "--version" {
		version := "7.2.22 (Debian 1:7.2)"
		if v, ok := strings.CutPrefix(scenario, "version "); ok {
			version = v
		}
		fmt.Println("QEMU emulator version " + version)
		return 0
	}
	if text, ok := complain[scenario]; ok {
		fmt.Fprintln(os.Stderr, text)
		return 1
	}
	signal.Ignore(syscall.SIGTERM)
	if scenario == "silent" {
		time.Sleep(time.Minute)
	}
	fd, err := strconv.Atoi(monitorFD.FindStringSubmatch(args)[1])
	if err != nil {
		return 99
	}
	c, err := net.FileConn(os.NewFile(uintptr(fd), "monitor"))
	if err != nil {
		return 98
	}
	fmt.Fprintln(c, `{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7},"package":""},"capabilities":["oob"]}}`)
	command := regexp.MustCompile(`"execute":"([a-z_-]+)","id":(\d+)`)
	for lines := bufio.NewScanner(c); lines.Scan(); {
		words := command.FindStringSubmatch(lines.Text())
		if words == nil {
			return 97
		}
		say := func(s string) { fmt.Fprintln(c, strings.ReplaceAll(s, "ID", words[2])) }
		if strings.HasPrefix(scenario, "probe") && words[1] == "qmp_capabilities" {
			quits(say, words[1])
			continue
		}
		if code, end := scenarios[scenario](say, words[1]); end {
			return code
		}
	}
	if scenario == "lingers" {
		time.Sleep(time.Minute)
	}
	return 96
}
