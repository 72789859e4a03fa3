package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/paths"
)

type startOptions struct {
	cpus         int
	memory, disk size
	arch         string
	shares       []string // PATH[:ro][:secrets], absolute
	context      bool
	trace, json  bool
}

func newStart(a *app) *cobra.Command {
	var o startOptions
	cmd := &cobra.Command{
		Use:   "start [NAME]",
		Short: "Start a machine, making it where there is none",
		Long: `Start boots a machine and returns when its Docker Engine answers. A machine that does not exist is made.

The settings are kept: the next start needs no flags, and ` + "`coracle config`" + ` shows and changes them. CPUs and memory can be
changed at each start, the disk can grow, a share comes to those there are.
Memory and disk are taken from this computer as they are used, up to the size given.

Starting makes a docker context for the machine and selects it, so that every docker command on this computer means the
machine from then on; with --context=false nothing of Docker's configuration is touched. A machine that runs already is
left as it is. Interrupting this command does not end the start.`,
		Example: `  coracle start
  coracle start --cpus 4 --memory 8GiB --disk 100GiB
  coracle start --share /work --share ~/tools:ro
  coracle start --context=false work
  coracle start --trace`,
		Args:              between(0, 1),
		ValidArgsFunction: a.completeMachine,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("cpus") && o.cpus < 1 {
				return usageError{err: fmt.Errorf("invalid argument \"%d\" for \"--cpus\" flag: want at least 1", o.cpus)}
			}
			if cmd.Flags().Changed("arch") && o.arch != "amd64" && o.arch != "arm64" {
				return usageError{err: fmt.Errorf("invalid argument %q for \"--arch\" flag: want amd64 or arm64", o.arch)}
			}
			for i, text := range o.shares {
				var err error
				if o.shares[i], err = absoluteShare(text); err != nil {
					return usageError{err: fmt.Errorf("invalid argument %q for \"--share\" flag: %w", text, err), hint: "give it as PATH, PATH:ro, PATH:secrets or PATH:ro:secrets"}
				}
			}
			return a.start(cmd.Context(), args, o)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.cpus, "cpus", 0, "number of virtual CPUs")
	f.Var(&o.memory, "memory", "memory of the machine, such as 4GiB")
	f.Var(&o.disk, "disk", "size of the disk with images, containers and volumes, such as 64GiB; it can grow, not shrink")
	f.StringVar(&o.arch, "arch", "", "architecture of the guest, amd64 or arm64; other than this computer's it is emulated, slowly")
	f.StringArrayVar(&o.shares, "share", nil, "directory of this computer that containers can mount, PATH or PATH:ro; may be given again")
	f.BoolVar(&o.context, "context", true, "make and select a docker context for the machine")
	f.BoolVar(&o.trace, "trace", false, "print when each step of the start began and how long it took")
	f.BoolVar(&o.json, "json", false, "print events as lines of JSON, the last one with the machine's status")
	return cmd
}

// startLine is a line of `start --json`: an event of host/api, or at the end what the machine is.
type startLine struct {
	*api.Event
	Status *api.Status `json:"status,omitempty"`
}

func (a *app) start(ctx context.Context, args []string, o startOptions) error {
	m, err := a.machine(args)
	if err != nil {
		return err
	}
	home, err := a.home()
	if err != nil {
		return err
	}
	var steps []api.Step
	told := false // a script was told the error
	show := newProgress(a.stderr, a.began)
	started, err := api.Launch(ctx, api.LaunchOptions{
		Home: home, Name: m.Name, CPUs: o.cpus, Memory: int64(o.memory), Disk: int64(o.disk), Arch: o.arch, Shares: o.shares, Context: o.context, Since: a.began,
	}, func(e api.Event) error {
		if e.Step != nil {
			steps = append(steps, *e.Step)
		}
		if o.json {
			told = told || e.Error != nil
			return a.stdout.jsonLine(startLine{Event: &e})
		}
		show.event(e)
		return nil
	})
	show.end(err)
	if err != nil {
		return a.startFailed(ctx, m, err, o.json && !told)
	}
	if !started && len(o.shares) > 0 { // a machine that runs takes them too
		if _, err := api.Configure(ctx, home, m.Name, api.Change{Verb: api.ChangeAdd, Key: "shares", Values: o.shares}); err != nil {
			return err
		}
	}
	_, _, st, err := a.status(ctx, []string{m.Name})
	if err != nil {
		return err
	}
	if st.State != api.Running {
		return api.Errorf(api.CodeNotRunning, "machine %q did run, but is %s now", m.Name, st.State)
	}
	if o.json {
		return a.stdout.jsonLine(startLine{Status: &st})
	}
	a.started(st, o, started)
	if o.trace {
		timeline(a.stdout, steps)
	}
	a.next(st)
	return nil
}

// startFailed is err with what an interrupted or broken start leaves to do. A script gets it as the last line of JSON too.
func (a *app) startFailed(ctx context.Context, m paths.Machine, err error, json bool) error {
	if ctx.Err() != nil {
		return &api.Error{Code: api.CodeInternal, Message: "interrupted: machine \"" + m.Name + "\" goes on starting in the background", Hint: "run `coracle stop " + m.Name + "` to end it"}
	}
	var e *api.Error
	if !errors.As(err, &e) {
		e = api.Errorf(api.CodeInternal, "%v", err)
	}
	if json {
		return errors.Join(a.stdout.jsonLine(startLine{Event: &api.Event{Time: time.Now(), Kind: api.EventError, Error: e}}), e)
	}
	return e
}

// started says what runs now.
func (a *app) started(st api.Status, o startOptions, ours bool) {
	took := time.Since(a.began).Seconds()
	what := fmt.Sprintf("%s, %s of memory, %s", count(st.Settings.CPUs, "CPU"), formatSize(st.Settings.Memory), driver(st))
	switch {
	case ours:
		a.stdout.printf("Machine %q runs after %.1f s: %s\n", st.Name, took, what)
	case st.Ready.After(a.began):
		a.stdout.printf("Machine %q runs, started by another command: %s\n", st.Name, what)
	default:
		a.stdout.printf("Machine %q was running already: %s\n", st.Name, what)
	}
	if !ours && (o.cpus != 0 || o.memory != 0 || o.disk != 0 || o.arch != "") {
		a.note("the settings given have no effect on a machine that runs: stop it first")
	}
	if st.Note != "" {
		a.note(st.Note)
	}
	for _, sh := range st.Shared {
		if sh.Error != "" {
			a.note(sh.Path + " is not shared: " + oneLine(sh.Error))
		}
	}
	switch {
	case st.Context == "":
	case ours:
		a.stdout.printf("The docker context %q is selected.\n", st.Context)
	default: // the user may have selected another one since
		a.stdout.printf("The docker context %q leads to it.\n", st.Context)
	}
}

func (a *app) note(text string) {
	a.stderr.printf("%s %s\n", a.stderr.paint(yellow, "note:"), printable(text))
}

// next says what to type now.
func (a *app) next(st api.Status) {
	if _, err := exec.LookPath("docker"); st.Context != "" && err == nil {
		a.stdout.printf("Next: docker ps, docker run, docker build\n")
		return
	}
	prefix := "coracle docker"
	if st.Name != paths.DefaultMachine {
		prefix += " --machine " + st.Name
	}
	a.stdout.printf("Next: %s ps, or `coracle env --help` to lead other tools here\n", prefix)
}
