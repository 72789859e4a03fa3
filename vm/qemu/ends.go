//go:build linux

package qemu

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"

	"github.com/coracle-engine/coracle/vm"
)

// ending is what is known when a QEMU process has ended: what it said on its monitor, how it exited, what it complained of.
type ending struct {
	stopped  bool   // we pulled the plug
	reason   string // of the SHUTDOWN event, empty without one (QEMU's qapi/run-state.json, ShutdownCause)
	internal bool   // KVM gave up on the guest
	exit     error  // of exec.Cmd's Wait
	stderr   string
	console  string // the console's file, for the reader of the error
}

// verdict is what Machine.Wait returns for e.
func (e ending) verdict() error {
	see := ""
	if e.console != "" {
		see = "; its console is in " + e.console
	}
	switch {
	case e.stopped:
		return nil
	case e.internal:
		return fmt.Errorf("%w: KVM could not run the guest (nested virtualization?); the next start does without KVM", vm.ErrCrashed)
	case e.reason == "guest-shutdown" && e.exit == nil:
		return nil
	case e.reason == "guest-reset" || e.reason == "guest-panic":
		return fmt.Errorf("%w: the guest's kernel panicked or reset the machine%s", vm.ErrCrashed, see)
	case e.reason == "host-signal":
		return fmt.Errorf("%w: somebody sent it a signal", vm.ErrCrashed)
	}
	var exit *exec.ExitError
	if errors.As(e.exit, &exit) {
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL {
			return fmt.Errorf("%w: killed, by somebody or for want of memory", vm.ErrCrashed)
		}
	}
	return fmt.Errorf("%w: %s", vm.ErrCrashed, e.complaint())
}

func (e ending) complaint() string {
	words := "exit status 0"
	if e.exit != nil {
		words = e.exit.Error()
	}
	if e.stderr != "" {
		words += ": " + e.stderr
	}
	return words
}

// complaints maps what QEMU writes before it gives up a start to a class and what to do. The first match counts.
var complaints = []struct {
	text  string
	class error
	hint  string
}{
	{"cannot set up guest memory", vm.ErrNoMemory, "give the machine less memory"},
	{"Cannot allocate memory", vm.ErrNoMemory, "give the machine less memory"},
	{"failed to resize memfd", vm.ErrNoMemory, "give the machine less memory"},
	{`Failed to get "write" lock`, vm.ErrRunning, "another process uses the disk"},
	{`Failed to get shared "write" lock`, vm.ErrRunning, "another process uses the disk"},
	{`Failed to get "consistent read" lock`, vm.ErrRunning, "another process uses the disk"},
	{"No space left on device", vm.ErrDiskFull, "make room"},
	{"could not open kernel file", vm.ErrAssetCorrupt, ""},
	{"could not load kernel", vm.ErrAssetCorrupt, ""},
	{"could not load PVH", vm.ErrAssetCorrupt, ""},
	{"Error while loading elf kernel", vm.ErrAssetCorrupt, ""},
	{"invalid kernel header", vm.ErrAssetCorrupt, ""},
	{"error reading initrd", vm.ErrAssetCorrupt, ""},
	{"could not load initrd", vm.ErrAssetCorrupt, ""},
	{"kernel too old", vm.ErrAssetCorrupt, ""},
	{"Number of hotpluggable cpus", vm.ErrConfig, "give the machine fewer CPUs"},
	{"Invalid SMP CPUs", vm.ErrConfig, "give the machine fewer CPUs"},
	{"invalid option", vm.ErrNotSupported, "QEMU 7.2 or later is needed"},
	{"not compiled in", vm.ErrNotSupported, "QEMU's build lacks a part that is needed"},
	{"seccomp support is disabled", vm.ErrNotSupported, "QEMU's build lacks its sandbox"},
	{"is not a valid device model name", vm.ErrNotSupported, "QEMU's build lacks a device that is needed"},
}

// startError is what Machine.Start returns for a QEMU that ended before it ran.
func (e ending) startError() error {
	for _, c := range complaints {
		if strings.Contains(e.stderr, c.text) {
			if c.hint != "" {
				return fmt.Errorf("%w (%s): %s", c.class, c.hint, e.stderr)
			}
			return fmt.Errorf("%w: %s", c.class, e.stderr)
		}
	}
	return fmt.Errorf("%w: %s", vm.ErrCrashed, e.complaint())
}
