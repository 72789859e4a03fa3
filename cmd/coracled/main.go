// Command coracled is the host process of ONE machine, and the only program that links a hypervisor's driver. `coracled run
// NAME`, which host/api's Launch starts detached, owns the machine's virtual machine, disk and sockets until it ends; it tells
// how the start goes by JSON lines on its standard output. The short commands delete and doctor do for the command line what
// only this program may or can do, and answer with JSON. It puts the rooms of host/* together and has no logic of its own.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/diagnose"
	"github.com/coracle-engine/coracle/host/paths"
)

const usage = `coracled is started by coracle; a person has no need to.

usage:
  coracled run [--cpus N] [--memory BYTES] [--disk BYTES] [--arch ARCH] [--context=false] [--since NS] NAME
  coracled delete NAME
  coracled doctor
`

func main() {
	dropInherited()
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP) // whoever started us may go away
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	home, err := paths.Home(runtime.GOOS, os.Getenv)
	if err == nil {
		err = dispatch(ctx, home, os.Args[1], os.Args[2:])
	}
	if err != nil {
		os.Exit(1)
	}
}

func dispatch(ctx context.Context, home, command string, args []string) error {
	switch command {
	case "run":
		o, err := parseRun(args)
		if err != nil {
			return err
		}
		return told(o.run(ctx, home), o.name)
	case "delete":
		name, err := oneName(flag.NewFlagSet("delete", flag.ExitOnError), args)
		if err != nil {
			return err
		}
		return answer(struct{}{}, remove(ctx, home, name), name)
	case "config":
		name, err := oneName(flag.NewFlagSet("config", flag.ExitOnError), args)
		if err != nil {
			return err
		}
		c, err := configure(ctx, home, name, os.Stdin)
		return answer(c, err, name)
	case "doctor":
		checks, err := doctor(ctx, home)
		return answer(checks, err, "")
	}
	fmt.Fprint(os.Stderr, usage)
	os.Exit(2)
	return nil
}

// oneName parses args, which must end in a machine's name.
func oneName(flags *flag.FlagSet, args []string) (string, error) {
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	if flags.NArg() != 1 {
		fmt.Fprint(os.Stderr, usage)
		return "", errors.New("want one machine's name")
	}
	return flags.Arg(0), nil
}

func parseRun(args []string) (o options, err error) {
	flags := flag.NewFlagSet("run", flag.ExitOnError)
	flags.IntVar(&o.cpus, "cpus", 0, "virtual CPUs; 0 leaves the machine's setting")
	flags.Int64Var(&o.memory, "memory", 0, "memory in bytes; 0 leaves the machine's setting")
	flags.Int64Var(&o.disk, "disk", 0, "size of the data disk in bytes; 0 leaves the machine's setting")
	flags.StringVar(&o.arch, "arch", "", "architecture of the guest; empty leaves the machine's setting")
	flags.Func("share", "directory to share, PATH[:ro][:secrets]; may be given again", func(text string) error {
		o.shares = append(o.shares, text)
		return nil
	})
	flags.BoolVar(&o.context, "context", true, "make and select the docker context")
	since := flags.Int64("since", 0, "when the start was asked for, in nanoseconds since 1970")
	o.name, err = oneName(flags, args)
	o.since = time.Unix(0, *since)
	if *since == 0 {
		o.since = time.Now()
	}
	return o, err
}

// told makes sure that whoever reads our standard output learns of an error that no machine's event has told.
func told(err error, name string) error {
	if err == nil || errors.Is(err, errTold) {
		return err
	}
	line, _ := json.Marshal(api.Event{Time: time.Now(), Kind: api.EventError, Error: diagnose.Explain(err, name)})
	os.Stdout.Write(append(line, '\n'))
	return err
}

// answer prints a short command's result, or its error about machine name, as JSON.
func answer(v any, err error, name string) error {
	if err != nil {
		v = diagnose.Explain(err, name)
	}
	return errors.Join(err, json.NewEncoder(os.Stdout).Encode(v))
}
