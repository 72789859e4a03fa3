package main

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/paths"
)

// configOptions are the flags of all verbs below config.
type configOptions struct {
	machine string
	json    bool
}

func newConfig(a *app) *cobra.Command {
	o := &configOptions{}
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show and change a machine's settings",
		Long: `Config shows a machine's settings and changes them. A machine that runs follows at once where it can; the rest counts
from its next start, and config says so. Nothing is kept that the machine could not follow.

Shares are the directories of this computer that containers can mount, at the same path: as it comes, your home without the
directories that hold keys (.ssh, .aws, .gnupg and the like). PATH:ro shares for reading alone, PATH:secrets with those
directories, PATH:ro:secrets both. Giving a path again changes how it is shared.

The keys below "engine" are those of dockerd's daemon.json: engine.insecure-registries, engine.registry-mirrors,
engine.log-opts and so on. They count at once unless containers would have to stop for it.`,
		Example: `  coracle config
  coracle config add shares /work ~/tools:ro
  coracle config remove shares all
  coracle config set memory 8GiB
  coracle config set ports.address 0.0.0.0
  coracle config add engine.insecure-registries registry.lan:5000
  coracle config set engine.log-opts '{"max-size": "10m"}'
  coracle config remove engine.log-opts
  coracle config set --machine work network.http-proxy http://proxy.example:3128
  coracle config edit`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{err: fmt.Errorf("unknown command %q for %s", args[0], cmd.CommandPath()), hint: "see `coracle config --help`"}
			}
			return nil
		},
		RunE: run(func(ctx context.Context, _ []string) error { return a.configList(ctx, o) }),
	}
	f := cmd.PersistentFlags()
	f.StringVar(&o.machine, "machine", "", "name of the machine")
	f.BoolVar(&o.json, "json", false, "print JSON")
	_ = cmd.RegisterFlagCompletionFunc("machine", func(cmd *cobra.Command, _ []string, text string) ([]string, cobra.ShellCompDirective) {
		return a.completeMachine(cmd, nil, text)
	})
	cmd.AddCommand(a.configVerbs(o)...)
	return cmd
}

func (a *app) configVerbs(o *configOptions) []*cobra.Command {
	verb := func(use, short string, least, most int, f func(context.Context, []string) error) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Args: configArgs(least, most), RunE: run(f),
			ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
				return a.completeSetting(cmd, o, args, most)
			},
		}
	}
	change := func(name string) func(context.Context, []string) error {
		return func(ctx context.Context, args []string) error {
			return a.configChange(ctx, o, api.Change{Verb: name, Key: args[0], Values: args[1:]})
		}
	}
	const many = 1 << 10
	return []*cobra.Command{
		verb("list", "Show all settings", 0, 0, func(ctx context.Context, _ []string) error { return a.configList(ctx, o) }),
		verb("get KEY", "Print one setting, each element of a list on a line of its own", 1, 1, func(ctx context.Context, args []string) error { return a.configGet(ctx, o, args[0]) }),
		verb("set KEY VALUE...", "Change a setting; a list to the values given, '' for none", 2, many, change(api.ChangeSet)),
		verb("add KEY VALUE...", "Add to a list", 2, many, change(api.ChangeAdd)),
		verb("remove KEY [VALUE...|all]", "Remove from a list, or put back what a setting was", 1, many, change(api.ChangeRemove)),
		verb("edit [FILE]", "Edit the settings file; it is checked before it counts", 0, 1, func(ctx context.Context, args []string) error { return a.configEdit(ctx, o, args) }),
		verb("path", "Print the path of the settings file", 0, 0, func(context.Context, []string) error { return a.configPath(o) }),
	}
}

func configArgs(least, most int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		hint := "usage: " + cmd.UseLine()
		switch {
		case len(args) < least && len(args) == 0:
			return usageError{err: fmt.Errorf("%s needs the key of a setting", cmd.CommandPath()), hint: hint}
		case len(args) < least:
			return usageError{err: fmt.Errorf("%s needs a value for %s", cmd.CommandPath(), args[0]), hint: hint}
		case len(args) > most:
			return usageError{err: fmt.Errorf("%s: unexpected argument %q", cmd.CommandPath(), args[most]), hint: hint}
		}
		return nil
	}
}

// place is the machine that is meant.
func (o *configOptions) place(a *app) (paths.Machine, error) {
	if o.machine == "" {
		return a.machine(nil)
	}
	return a.machine([]string{o.machine})
}

func (a *app) configure(ctx context.Context, o *configOptions, ch api.Change) (api.Configuration, error) {
	m, err := o.place(a)
	if err != nil {
		return api.Configuration{}, err
	}
	home, err := a.home()
	if err != nil {
		return api.Configuration{}, err
	}
	return api.Configure(ctx, home, m.Name, ch)
}

func (a *app) configPath(o *configOptions) error {
	m, err := o.place(a)
	if err != nil {
		return err
	}
	a.stdout.printf("%s\n", m.Config())
	return nil
}

func (a *app) configList(ctx context.Context, o *configOptions) error {
	c, err := a.configure(ctx, o, api.Change{})
	if err != nil {
		return err
	}
	if o.json {
		return a.configJSON(c)
	}
	var rows [][]string
	for _, s := range c.Keys {
		waits := slices.Contains(c.Waiting, s.Key)
		if strings.HasPrefix(s.Key, "engine.") && len(s.Values) == 0 && !waits {
			continue // dockerd has dozens of them
		}
		remark := ""
		switch {
		case waits:
			remark = a.stdout.paint(yellow, "from the next start")
		case s.Default:
			remark = a.stdout.paint(faint, "default")
		}
		for i, v := range append(slices.Clone(s.Values), "")[:max(1, len(s.Values))] {
			row := []string{a.stdout.paint(bold, s.Key), oneLine(v), remark}
			if i > 0 {
				row[0], row[2] = "", ""
			}
			rows = append(rows, row)
		}
	}
	a.stdout.table(rows)
	a.configNotes(c)
	return nil
}

// configJSON leaves the file's text out, which is there for editors.
func (a *app) configJSON(c api.Configuration) error {
	c.Text = ""
	return a.stdout.json(c)
}

// configNotes tells what of the settings does not count yet, and what is odd about them.
func (a *app) configNotes(c api.Configuration) {
	for _, n := range c.Notes {
		a.note(oneLine(n))
	}
	if len(c.Waiting) > 0 {
		name := ""
		if c.Machine != paths.DefaultMachine {
			name = " " + c.Machine
		}
		a.note(fmt.Sprintf("waiting for the next start: %s; run `coracle stop%s && coracle start%s`", oneLine(strings.Join(c.Waiting, ", ")), name, name))
	}
}

func (a *app) configGet(ctx context.Context, o *configOptions, key string) error {
	c, err := a.configure(ctx, o, api.Change{Key: key})
	if err != nil {
		return err
	}
	for _, s := range c.Keys {
		if o.json {
			return a.stdout.json(s)
		}
		for _, v := range s.Values {
			a.stdout.printf("%s\n", printable(v))
		}
	}
	return nil
}

func (a *app) configChange(ctx context.Context, o *configOptions, ch api.Change) (err error) {
	if ch.Values, err = absolute(ch.Key, ch.Values); err != nil {
		return err
	}
	c, err := a.configure(ctx, o, ch)
	if err != nil {
		return err
	}
	return a.configChanged(c, o)
}

// configChanged says what has changed, and from when it counts.
func (a *app) configChanged(c api.Configuration, o *configOptions) error {
	if o.json {
		return a.configJSON(c)
	}
	values := map[string]string{}
	for _, s := range c.Keys {
		values[s.Key] = strings.Join(s.Values, ", ")
	}
	for _, key := range c.Changed {
		when := ", in force"
		if !c.Running || slices.Contains(c.Waiting, key) {
			when = ", from the next start"
		}
		v := values[key]
		if v == "" {
			v = "none"
		}
		a.stdout.printf("%s: %s%s\n", oneLine(key), oneLine(v), when)
	}
	if len(c.Changed) == 0 {
		a.stdout.printf("Nothing to change.\n")
	}
	a.configNotes(c)
	return nil
}

// absolute makes values that are paths absolute, since only we know where the user is.
func absolute(key string, values []string) ([]string, error) {
	one := filepath.Abs
	switch key {
	case "shares", "share":
		one = absoluteShare
	case "network.certificates", "network.certificate":
	default:
		return values, nil
	}
	out := slices.Clone(values)
	for i, v := range out {
		if v == "" || v == "all" {
			continue
		}
		var err error
		if out[i], err = one(v); err != nil {
			return nil, usageError{err: fmt.Errorf("invalid value %q for %s: %w", v, key, err), hint: "see `coracle config --help`"}
		}
	}
	return out, nil
}

// absoluteShare makes the path in PATH[:ro][:secrets] absolute.
func absoluteShare(text string) (string, error) {
	sh, err := api.ParseShare(text)
	if err != nil {
		return "", err
	}
	sh.Path, err = filepath.Abs(sh.Path)
	return sh.String(), err
}

// completeSetting completes keys, and values where there is a choice.
func (a *app) completeSetting(cmd *cobra.Command, o *configOptions, args []string, most int) ([]string, cobra.ShellCompDirective) {
	const none = cobra.ShellCompDirectiveNoFileComp
	switch {
	case cmd.Name() == "edit" && len(args) == 0:
		return nil, cobra.ShellCompDirectiveDefault
	case cmd.Name() == "edit" || len(args) >= most:
		return nil, none
	}
	ch := api.Change{}
	if len(args) > 0 {
		ch.Key = args[0]
	}
	c, err := a.configure(cmd.Context(), o, ch)
	if err != nil {
		return nil, none
	}
	var words []string
	if len(args) == 0 {
		for _, s := range c.Keys {
			if cmd.Name() != "add" || slices.Contains([]string{api.KindShares, api.KindFiles, api.KindList}, s.Kind) {
				words = append(words, s.Key+"\t"+s.Doc)
			}
		}
		return words, none
	}
	s := c.Keys[0]
	switch {
	case cmd.Name() == "remove" && len(s.Values) > 1:
		return append(slices.Clone(s.Values), "all"), none
	case cmd.Name() == "remove":
		return s.Values, none
	case s.Kind == api.KindSwitch:
		return []string{"true", "false"}, none
	case s.Kind == api.KindShares:
		return nil, cobra.ShellCompDirectiveFilterDirs
	case s.Kind == api.KindFiles:
		return nil, cobra.ShellCompDirectiveDefault
	}
	return nil, none
}
