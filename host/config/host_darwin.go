package config

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// ThisHost measures the host that we run on.
func ThisHost() (Host, error) {
	n, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return Host{}, fmt.Errorf("measure host's memory: %w", err)
	}
	return Host{CPUs: runtime.NumCPU(), Memory: int64(n), Home: home()}, nil
}
