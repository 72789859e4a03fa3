package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/coracle-engine/coracle/host/api"
)

func newDelete(a *app) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:     "delete NAME",
		Aliases: []string{"rm"},
		Short:   "Delete a machine with all its data",
		Long: `Delete removes a stopped machine with all its images, containers and volumes, for good. It asks before it does, on a
terminal; elsewhere it wants --yes.`,
		Example: `  coracle delete work
  coracle delete --yes work`,
		Args:              between(1, 1),
		ValidArgsFunction: a.completeMachine,
		RunE:              run(func(ctx context.Context, args []string) error { return a.delete(ctx, args, yes) }),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return cmd
}

func (a *app) delete(ctx context.Context, args []string, yes bool) error {
	m, _, st, err := a.status(ctx, args)
	if err != nil {
		return err
	}
	if alive(st) {
		return &api.Error{Code: api.CodeRunning, Message: fmt.Sprintf("machine %q is %s", m.Name, st.State), Hint: "run `coracle stop " + m.Name + "` first"}
	}
	loss := "all its images, containers and volumes"
	if st.DiskUsed > 0 {
		loss += " (" + formatSize(st.DiskUsed) + ")"
	}
	if !yes {
		if err := a.confirm(fmt.Sprintf("Delete machine %q with %s, for good?", m.Name, loss)); err != nil {
			return err
		}
	}
	home, err := a.home()
	if err != nil {
		return err
	}
	if err := api.Delete(ctx, home, m.Name); err != nil {
		return err
	}
	a.stdout.printf("Machine %q is deleted with %s.\n", m.Name, loss)
	return nil
}

// confirm is nil where the user, at a terminal, says yes.
func (a *app) confirm(question string) error {
	if !term.IsTerminal(int(a.stdin.Fd())) {
		return &api.Error{Code: api.CodeConfig, Message: "not deleted: there is no terminal to ask on. " + question, Hint: "add --yes to say so"}
	}
	a.stderr.printf("%s [y/N] ", question)
	answer, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil {
		a.stderr.printf("\n")
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errors.New("not deleted")
}
