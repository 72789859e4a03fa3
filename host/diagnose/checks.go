package diagnose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/paths"
	"github.com/coracle-engine/coracle/vm"
)

// checkHome wants a directory that is ours to write in and no one else's to look at, or one that can be made.
func checkHome(home string) api.Check {
	const name = "home"
	dir := home
	st, err := os.Stat(dir)
	for errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) { // it will be made: can it be?
		dir = filepath.Dir(dir)
		st, err = os.Stat(dir)
	}
	switch {
	case err != nil:
		return failed(name, fmt.Errorf("look at Coracle's home: %w", err))
	case !st.IsDir():
		return failed(name, &api.Error{Code: api.CodePermission, Message: dir + " is not a directory", Hint: "move it away, or set CORACLE_HOME to another place"})
	}
	if err := writable(dir); err != nil {
		return failed(name, &api.Error{Code: api.CodePermission, Message: fmt.Sprintf("this user cannot write to %s: %v", dir, err)})
	}
	if dir == home && runtime.GOOS != "windows" && st.Mode().Perm()&0o022 != 0 {
		return api.Check{Name: name, Level: api.CheckWarn, Detail: fmt.Sprintf("others may write to %s (mode %v)", home, st.Mode().Perm()), Hint: "run `chmod go-w " + home + "`", Code: api.CodePermission}
	}
	return ok(name, "%s", home)
}

func checkSockets(home string) api.Check {
	if _, err := paths.ForMachine(home, paths.DefaultMachine); err != nil {
		return failed("socket paths", err)
	}
	longest := 0
	for n := 1; n <= 32; n++ { // names may have up to 32 letters
		if _, err := paths.ForMachine(home, fmt.Sprintf("%0*d", n, 0)); err == nil {
			longest = n
		}
	}
	if longest < 32 {
		return api.Check{Name: "socket paths", Level: api.CheckWarn, Detail: fmt.Sprintf("names of machines can have up to %d letters here", longest), Hint: Table[api.CodePathTooLong].Next, Code: api.CodePathTooLong}
	}
	return ok("socket paths", "short enough for any name")
}

func checkSpace(s Subject) api.Check {
	const name = "free disk"
	const comfortable = 8 << 30
	free, needed, err := s.Space()
	switch {
	case err != nil:
		return failed(name, err)
	case free < needed:
		return failed(name, api.Errorf(api.CodeDiskFull, "%d MiB free: a start needs %d MiB", free>>20, needed>>20))
	case free < comfortable:
		return api.Check{Name: name, Level: api.CheckWarn, Detail: fmt.Sprintf("%.1f GiB free: images and containers need more before long", gib(free)), Hint: Table[api.CodeDiskFull].Next, Code: api.CodeDiskFull}
	}
	return ok(name, "%.1f GiB", gib(free))
}

func gib(n int64) float64 { return float64(n) / (1 << 30) }

func checkMemory(s Subject) api.Check {
	detail := fmt.Sprintf("%.1f GiB on this host; a new machine gets %.1f GiB", gib(s.Memory), gib(s.Default))
	if s.Default > s.Memory/2 {
		return api.Check{Name: "memory", Level: api.CheckWarn, Detail: detail, Hint: "ask for less with --memory", Code: api.CodeNoMemory}
	}
	return ok("memory", "%s", detail)
}

// checkDrivers runs each driver's probe, which tries the hypervisor.
func checkDrivers(ctx context.Context, drivers []vm.Driver) []api.Check {
	if len(drivers) == 0 {
		return []api.Check{failed("hypervisor", fmt.Errorf("there is no driver for %s: %w", runtime.GOOS, vm.ErrNotSupported))}
	}
	var checks []api.Check
	for _, d := range drivers {
		caps, err := d.Probe(ctx)
		if err != nil {
			checks = append(checks, failed("hypervisor "+d.Name(), err))
			continue
		}
		checks = append(checks, ok("hypervisor "+d.Name(), "version %s", caps.Version))
		if caps.Reason == "" {
			checks = append(checks, ok("accelerator", "%s", caps.Accelerator))
		} else {
			checks = append(checks, api.Check{Name: "accelerator", Level: api.CheckWarn, Detail: caps.Accelerator + ": " + caps.Reason, Hint: "machines work, but slower; give this user a /dev/kvm that can run a guest"})
		}
		if caps.Accelerator == "tcg" && older(caps.Version, 8, 1) {
			checks = append(checks, api.Check{Name: "emulation", Level: api.CheckWarn, Detail: "QEMU " + caps.Version + " emulates all CPUs of a machine in one thread", Hint: "install QEMU 8.1 or later"})
		}
	}
	return checks
}

// older is whether a version is known and before major.minor.
func older(version string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(version, "%d.%d", &a, &b); n < 2 {
		return false
	}
	return a < major || a == major && b < minor
}

func checkImage(s Subject) api.Check {
	which, err := s.Image()
	if err != nil {
		return failed("guest image", err)
	}
	return ok("guest image", "%s", which)
}

// checkMachines finds machines that failed, hang, or whose directory nobody understands.
func checkMachines(ctx context.Context, s Subject) []api.Check {
	list, err := api.List(ctx, s.Home)
	if err != nil {
		return []api.Check{failed("machines", err)}
	}
	known := map[string]bool{}
	var checks []api.Check
	for _, st := range list {
		known[st.Name] = true
		c := ok("machine "+st.Name, "%s", st.State)
		if st.Error != nil {
			c = api.Check{Name: c.Name, Level: api.CheckWarn, Detail: fmt.Sprintf("%s: %s", st.State, st.Error.Message), Hint: Explain(st.Error, st.Name).Hint, Code: st.Error.Code}
		}
		checks = append(checks, c)
		if s.Settings != nil {
			checks = append(checks, checkSettings(st.Name, s.Settings)...)
		}
	}
	entries, _ := os.ReadDir(paths.Machines(s.Home)) // List could
	for _, e := range entries {
		if !known[e.Name()] {
			checks = append(checks, api.Check{Name: "machine " + fmt.Sprintf("%q", e.Name()), Level: api.CheckWarn, Detail: "no machine can have this name", Hint: "remove " + filepath.Join(paths.Machines(s.Home), e.Name()) + " if it is not needed"})
		}
	}
	return checks
}
