package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-engine/coracle/host/api"
)

func newStop(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "stop [NAME]",
		Short: "Power a machine off; its data stays",
		Long: `Stop shuts a machine down in order: containers get their stop signals, then the file systems are unmounted. Images,
containers and volumes stay, and containers with a restart policy come back with the next start.

With --force the power is cut instead. What containers had not yet written to disk is lost then.`,
		Example: `  coracle stop
  coracle stop work
  coracle stop --force`,
		Args:              between(0, 1),
		ValidArgsFunction: a.completeMachine,
		RunE:              run(func(ctx context.Context, args []string) error { return a.stop(ctx, args, force) }),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "cut the power instead of shutting down")
	return cmd
}

func (a *app) stop(ctx context.Context, args []string, force bool) error {
	m, c, st, err := a.status(ctx, args)
	if err != nil {
		return err
	}
	if !alive(st) {
		a.stdout.printf("Machine %q is not running.\n", m.Name)
		return nil
	}
	show := newProgress(a.stderr, a.began)
	if force {
		show.step("cutting the power of "+m.Name, time.Now())
	} else {
		show.step("waiting for the containers of "+m.Name+" to stop", time.Now())
	}
	err = c.Stop(ctx, force)
	show.end(err)
	switch {
	case ctx.Err() != nil:
		return &api.Error{Code: api.CodeInternal, Message: "interrupted: machine \"" + m.Name + "\" goes on stopping in the background", Hint: "run `coracle stop --force " + m.Name + "` to cut its power"}
	case err != nil && api.CodeOf(err) != api.CodeNotRunning: // else another one was quicker
		return err
	}
	a.stdout.printf("Machine %q is stopped.\n", m.Name)
	return nil
}

// alive is whether there is a machine to stop: a host process that is about to end has none any more.
func alive(st api.Status) bool {
	return st.State == api.Starting || st.State == api.Running || st.State == api.Stopping
}
