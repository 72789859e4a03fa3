//go:build !windows

package main

import (
	"fmt"
	"syscall"
)

// execute becomes prog: signals, terminal and exit status are its own. It returns only where that fails.
func execute(prog string, argv, env []string) error {
	return fmt.Errorf("run %s: %w", prog, syscall.Exec(prog, argv, env))
}
