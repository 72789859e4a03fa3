package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
)

// execute runs prog to its end and passes its exit status on. An interrupt reaches it by the console, as it reaches us.
func execute(prog string, argv, env []string) error {
	cmd := exec.Command(prog, argv[1:]...)
	cmd.Env = env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return exitStatus(exit.ExitCode())
	case err != nil:
		return fmt.Errorf("run %s: %w", prog, err)
	}
	return nil
}
