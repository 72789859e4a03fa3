package config

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// ThisHost measures the host that we run on.
func ThisHost() (Host, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return Host{}, fmt.Errorf("measure host's memory: %w", err)
	}
	return Host{CPUs: runtime.NumCPU(), Memory: int64(info.Totalram) * int64(info.Unit), Home: home()}, nil
}
