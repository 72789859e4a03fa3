package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/coracle-engine/coracle/host/api"
)

func newShell(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:                   "shell [NAME] [-- COMMAND [ARG...]]",
		Short:                 "Open a root shell in a machine",
		DisableFlagsInUseLine: true,
		Long: `Shell opens a root shell in the virtual machine itself, beside its containers, or runs a command there. It is meant for
looking around: the root file system is read-only, and containers are reached by docker exec.

A command follows "--", so that it cannot be taken for a machine's name. It gets a terminal where this command has one,
and its exit status becomes this command's.`,
		Example: `  coracle shell
  coracle shell work
  coracle shell -- df -h /data
  coracle shell work -- cat /proc/meminfo`,
		ValidArgsFunction: a.completeMachine,
		Args:              cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, command := args, []string(nil)
			if cmd.ArgsLenAtDash() == 0 {
				name, command = nil, args
			} else if dash := slices.Index(args, "--"); dash > 0 {
				name, command = args[:dash], args[dash+1:]
			}
			if len(name) > 1 {
				return usageError{err: fmt.Errorf("unexpected argument %q", name[1]), hint: dashHint(name)}
			}
			return a.shell(cmd.Context(), name, command)
		},
	}
	cmd.Flags().SetInterspersed(false) // what follows a name is not ours: shell ls -l gets its own hint
	return cmd
}

// dashHint is for what looks like a command where a name was expected.
func dashHint(command []string) string {
	return "a command follows --, as in `coracle shell -- " + strings.Join(command, " ") + "`"
}

func (a *app) shell(ctx context.Context, name, command []string) error {
	_, c, _, err := a.status(ctx, name)
	if err != nil {
		if len(name) > 0 && command == nil && (api.CodeOf(err) == api.CodeNotFound || a.noMachineName(name)) {
			return &api.Error{Code: api.CodeOf(err), Message: err.Error(), Hint: dashHint(name) + "; `coracle list` shows the machines"}
		}
		return err
	}
	req := api.ShellRequest{Command: command}
	std := api.ShellIO{Stdin: a.stdin, Stdout: a.stdout, Stderr: a.stderr}
	var status int
	if term.IsTerminal(int(a.stdin.Fd())) && term.IsTerminal(a.stdout.fd) {
		status, err = a.terminal(ctx, c, req, std)
	} else {
		status, err = c.Shell(ctx, req, std)
	}
	if err == nil && status != 0 {
		return exitStatus(status)
	}
	return err
}

// noMachineName is true of what can be no machine's name, such as a path.
func (a *app) noMachineName(name []string) bool {
	_, err := a.machine(name)
	return err != nil
}

// terminal runs a shell with this terminal in raw mode as its own.
func (a *app) terminal(ctx context.Context, c *api.Client, req api.ShellRequest, std api.ShellIO) (int, error) {
	fd := int(a.stdin.Fd())
	old, err := term.MakeRaw(fd)
	if err != nil {
		return 0, fmt.Errorf("put terminal into raw mode: %w", err)
	}
	defer term.Restore(fd, old)
	req.TTY, req.Term, req.Size = true, os.Getenv("TERM"), terminalSize(a.stdout.fd)
	resizes, stop := watchSize(a.stdout.fd)
	defer stop()
	std.Resize = resizes
	return c.Shell(ctx, req, std)
}

func terminalSize(fd int) api.Size {
	cols, rows, err := term.GetSize(fd)
	if err != nil || cols <= 0 || rows <= 0 {
		return api.Size{Rows: 24, Cols: 80}
	}
	return api.Size{Rows: uint16(min(rows, 1<<16-1)), Cols: uint16(min(cols, 1<<16-1))}
}
