//go:build linux

package boot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Disk waits for the block device with a serial number and returns its device node.
func Disk(ctx context.Context, events *Uevents, serial string) (string, error) {
	for {
		changed := events.Changed()
		if name := diskBySerial("/sys/block", serial); name != "" {
			return "/dev/" + name, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return "", fmt.Errorf("find disk %s: %w", serial, context.Cause(ctx))
		}
	}
}

func diskBySerial(dir, serial string) string {
	names, err := filepath.Glob(filepath.Join(dir, "*", "serial"))
	if err != nil {
		return ""
	}
	for _, name := range names {
		if got, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(got)) == serial {
			return filepath.Base(filepath.Dir(name))
		}
	}
	return ""
}
