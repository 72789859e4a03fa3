package main

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/paths"
)

func newList(a *app) *cobra.Command {
	var json bool
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the machines",
		Long:    "List shows every machine, with its state and what it takes of this computer.",
		Example: `  coracle list
  coracle list --json`,
		Args: noArguments,
		RunE: run(func(ctx context.Context, _ []string) error {
			home, err := a.home()
			if err != nil {
				return err
			}
			list, err := api.List(ctx, home)
			if err != nil {
				return err
			}
			for i, st := range list {
				if m, err := paths.ForMachine(home, st.Name); err == nil {
					list[i] = withDisk(st, m)
				}
			}
			if json {
				return a.stdout.json(append([]api.Status{}, list...))
			}
			if len(list) == 0 {
				a.stderr.printf("There is no machine yet: `coracle start` makes one.\n")
				return nil
			}
			a.stdout.table(a.listRows(list, time.Now()))
			return nil
		}),
	}
	cmd.Flags().BoolVar(&json, "json", false, "print the status of every machine as a JSON array")
	return cmd
}

func (a *app) listRows(list []api.Status, now time.Time) [][]string {
	rows := [][]string{{"NAME", "STATE", "CPUS", "MEMORY", "DISK USED", "CONTEXT", "UP"}}
	for _, st := range list {
		row := []string{st.Name, a.stdout.paintState(st.State), "-", "-", "-", "-", "-"}
		if st.Settings.CPUs > 0 {
			row[2], row[3], row[4] = strconv.Itoa(st.Settings.CPUs), formatSize(st.Settings.Memory), formatSize(st.DiskUsed)
		}
		if st.Context != "" {
			row[5] = st.Context
		}
		if st.State == api.Running && !st.Ready.IsZero() {
			row[6] = age(now.Sub(st.Ready))
		}
		rows = append(rows, row)
	}
	return rows
}
