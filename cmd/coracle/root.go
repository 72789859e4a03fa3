package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coracle-engine/coracle/host/paths"
)

// newRoot is the whole command tree.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "coracle",
		Short: "Run containers in a small Linux virtual machine",
		Long: `Coracle boots a small Linux virtual machine with the Docker Engine in it, and forwards the engine's socket to this
computer. Any Docker tool can use it: by the docker context "coracle", or by the docker CLI that comes along.

Every verb takes the name of a machine; without one it means $CORACLE_MACHINE, else the machine "default".
Machines live in $CORACLE_HOME, else in ~/.coracle (on Windows %LOCALAPPDATA%\Coracle).`,
		Example: `  coracle start
  coracle docker run --rm hello-world
  coracle stop`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return cmd.Help()
		},
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.Version = ourVersion()
	root.SetVersionTemplate("coracle {{.Version}}\n")
	root.AddGroup(&cobra.Group{ID: "machines", Title: "Machines:"}, &cobra.Group{ID: "use", Title: "Using one:"}, &cobra.Group{ID: "about", Title: "About:"})
	root.SuggestionsMinimumDistance = 2
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetIn(a.stdin)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{err: err, hint: "see `" + cmd.CommandPath() + " --help`"}
	})
	addGroup(root, "machines", newStart(a), newStop(a), newStatus(a), newList(a), newConfig(a), newDelete(a))
	addGroup(root, "use", newDocker(a), newEnv(a), newShell(a), newLogs(a))
	addGroup(root, "about", newDoctor(a), newVersion(a), newCompletion(a))
	root.SetHelpCommandGroupID("about")
	return root
}

func addGroup(root *cobra.Command, id string, verbs ...*cobra.Command) {
	for _, verb := range verbs {
		verb.GroupID = id
		root.AddCommand(verb)
	}
}

func unknownCommand(cmd *cobra.Command, arg string) error {
	hint := "see `coracle --help`"
	if near := cmd.SuggestionsFor(arg); len(near) > 0 {
		hint = "did you mean `coracle " + strings.Join(near, "` or `coracle ") + "`?"
	}
	return usageError{err: fmt.Errorf("unknown command %q", arg), hint: hint}
}

// between wants so many arguments, and makes another number a wrong use.
func between(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		hint := "usage: " + cmd.UseLine()
		switch {
		case len(args) < least:
			return usageError{err: fmt.Errorf("%s needs the name of a machine", cmd.CommandPath()), hint: hint}
		case len(args) > most:
			return usageError{err: fmt.Errorf("%s: unexpected argument %q", cmd.CommandPath(), args[most]), hint: hint}
		}
		return nil
	}
}

func noArguments(cmd *cobra.Command, args []string) error { return between(0, 0)(cmd, args) }

// run is a verb's work with ctx from the command line's start.
func run(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error { return f(cmd.Context(), args) }
}

// completeMachine completes the first argument with the machines there are.
func (a *app) completeMachine(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	home, err := a.home()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	entries, _ := os.ReadDir(paths.Machines(home))
	var names []string
	for _, e := range entries {
		if paths.CheckName(e.Name()) == nil && e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
