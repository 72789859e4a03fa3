// Command demo is what `make run` puts into its container: it tells where it runs, which only a real container can.
package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

func main() {
	host, _ := os.Hostname()
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		fmt.Fprintln(os.Stderr, "read kernel release:", err)
		os.Exit(1)
	}
	fmt.Printf("Hello from container %s: process %d on Linux %s (%s), with %d CPUs.\n",
		host, os.Getpid(), strings.TrimSpace(string(kernel)), runtime.GOARCH, runtime.NumCPU())
}
