package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/coracle-engine/coracle/host/api"
)

func newDoctor(a *app) *cobra.Command {
	var json bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look for what could keep machines from starting",
		Long: `Doctor tries whatever a start needs, and says for each thing that is wrong what to do about it. It changes nothing. The
exit status is 1 where a machine could not start; a warning alone does not make it so.`,
		Example: `  coracle doctor
  coracle doctor --json`,
		Args: noArguments,
		RunE: run(func(ctx context.Context, _ []string) error { return a.doctor(ctx, json) }),
	}
	cmd.Flags().BoolVar(&json, "json", false, "print the checks as a JSON array")
	return cmd
}

func (a *app) doctor(ctx context.Context, json bool) error {
	home, err := a.home()
	if err != nil {
		return err
	}
	checks, err := api.Doctor(ctx, home)
	if err != nil {
		return err
	}
	failed := 0
	var rows [][]string
	for _, c := range checks {
		color := map[string]string{api.CheckOK: green, api.CheckWarn: yellow, api.CheckFail: red}[c.Level]
		rows = append(rows, []string{a.stdout.paint(color, oneLine(c.Level)), oneLine(c.Name), oneLine(c.Detail)})
		if c.Hint != "" {
			rows = append(rows, []string{"", "", a.stdout.paint(cyan, "hint: ") + oneLine(c.Hint)})
		}
		if c.Level == api.CheckFail {
			failed++
		}
	}
	if json {
		if err := a.stdout.json(append([]api.Check{}, checks...)); err != nil {
			return err
		}
	} else {
		a.stdout.table(rows)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %s failed: machines cannot start", failed, count(len(checks), "check"))
	}
	return nil
}
