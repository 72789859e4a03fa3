package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-engine/coracle/host/api"
)

func newStatus(a *app) *cobra.Command {
	var json bool
	cmd := &cobra.Command{
		Use:   "status [NAME]",
		Short: "Tell how a machine is",
		Long: `Status tells the state of a machine, what it takes of this computer, and where its Docker socket is. It succeeds for a
machine that is stopped, too; a script asks for --json and reads "state".`,
		Example: `  coracle status
  coracle status --json work`,
		Args:              between(0, 1),
		ValidArgsFunction: a.completeMachine,
		RunE: run(func(ctx context.Context, args []string) error {
			_, _, st, err := a.status(ctx, args)
			if err != nil {
				return err
			}
			if json {
				return a.stdout.json(st)
			}
			a.stdout.table(a.statusRows(st, time.Now()))
			return nil
		}),
	}
	cmd.Flags().BoolVar(&json, "json", false, "print the whole status as JSON")
	return cmd
}

func (a *app) statusRows(st api.Status, now time.Time) [][]string {
	var rows [][]string
	add := func(key, value string) {
		if value != "" {
			rows = append(rows, []string{a.stdout.paint(faint, key), value})
		}
	}
	add("machine", a.stdout.paint(bold, st.Name))
	state := a.stdout.paintState(st.State)
	if st.State == api.Running && !st.Ready.IsZero() {
		state += " for " + age(now.Sub(st.Ready))
	}
	add("state", state)
	if st.Error != nil {
		add("error", a.stdout.paint(red, oneLine(st.Error.Message)))
		add("hint", oneLine(st.Error.Hint))
	}
	if alive(st) { // else it is how the machine ran, not how it will
		add("driver", driver(st))
		add("note", oneLine(st.Note))
	}
	if st.Settings.CPUs > 0 {
		add("cpus", fmt.Sprint(st.Settings.CPUs))
		add("memory", formatSize(st.Settings.Memory))
		add("disk", fmt.Sprintf("%s (%s used)", formatSize(st.Settings.Disk), formatSize(st.DiskUsed)))
		add("arch", printable(st.Settings.Arch))
	}
	add("image", image(st.Image))
	if alive(st) {
		add("socket", st.DockerSocket)
	}
	add("context", st.Context)
	if alive(st) {
		rows = append(rows, a.hostRows(st)...)
	}
	for i, s := range st.Services {
		key := "services"
		if i > 0 {
			key = ""
		}
		rows = append(rows, []string{a.stdout.paint(faint, key), service(s)})
	}
	return rows
}

// hostRows tells what the machine has of this computer.
func (a *app) hostRows(st api.Status) [][]string {
	var rows [][]string
	add := func(key string, i int, value, problem string) {
		if i > 0 {
			key = ""
		}
		if problem != "" {
			value += ": " + a.stdout.paint(red, oneLine(problem))
		}
		rows = append(rows, []string{a.stdout.paint(faint, key), value})
	}
	for i, sh := range st.Shared {
		how := ""
		switch {
		case sh.ReadOnly && sh.Secrets:
			how = " (read-only, with secrets)"
		case sh.ReadOnly:
			how = " (read-only)"
		case sh.Secrets:
			how = " (with secrets)"
		}
		add("shares", i, oneLine(sh.Path)+how, sh.Error)
	}
	for i, p := range st.Published {
		at := net.JoinHostPort(p.Address, strconv.Itoa(int(p.Port)))
		add("ports", i, oneLine(fmt.Sprintf("%s/%s -> %s", at, p.Protocol, p.To)), p.Error)
	}
	return rows
}

// driver is how the machine runs: "qemu with kvm".
func driver(st api.Status) string {
	if st.Accelerator == "" {
		return printable(st.Driver)
	}
	return printable(st.Driver + " with " + st.Accelerator)
}

func image(i api.Image) string {
	var parts []string
	if i.Version != "" {
		parts = append(parts, i.Version)
	}
	if i.Kernel != "" {
		parts = append(parts, "Linux "+i.Kernel)
	}
	if i.Digest != "" {
		digest := strings.TrimPrefix(i.Digest, "sha256:")
		parts = append(parts, "digest "+digest[:min(len(digest), 12)])
	}
	return oneLine(strings.Join(parts, ", "))
}

func service(s api.Service) string {
	text := s.Name + " " + s.State
	if s.Restarts > 0 {
		text += ", restarted " + count(s.Restarts, "time")
	}
	if s.Detail != "" {
		text += ": " + s.Detail
	}
	return oneLine(text)
}

func (s screen) paintState(state api.State) string {
	color := map[api.State]string{api.Running: green, api.Failed: red, api.Starting: yellow, api.Stopping: yellow}[state]
	return s.paint(color, printable(string(state)))
}

func oneLine(text string) string { return printable(strings.Join(strings.Fields(text), " ")) }

// count is "1 CPU", "2 CPUs".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// age is d for people, in its two largest units.
func age(d time.Duration) string {
	switch s := int(d.Seconds()); {
	case s < 60:
		return fmt.Sprintf("%d s", max(s, 0))
	case s < 3600:
		return fmt.Sprintf("%d min %d s", s/60, s%60)
	case s < 24*3600:
		return fmt.Sprintf("%d h %d min", s/3600, s/60%60)
	default:
		return fmt.Sprintf("%d d %d h", s/86400, s/3600%24)
	}
}
