//go:build linux

// Command coracle-guest is PID 1 of the guest, started by the kernel as /init of the initramfs, and its modprobe and dockerd's
// docker-proxy, when it is called by those names.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coracle-engine/coracle/guest/agent"
	"github.com/coracle-engine/coracle/guest/boot"
	"github.com/coracle-engine/coracle/guest/watch"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "modprobe":
		os.Exit(boot.Modprobe(context.Background(), os.Args[1:], os.Stderr))
	case "docker-proxy":
		os.Exit(watch.Proxy(os.Args[1:]))
	}
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "error: coracle-guest is the first process of Coracle's virtual machine; it does nothing elsewhere")
		os.Exit(2)
	}
	agent.Main()
}
