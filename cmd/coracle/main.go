// Command coracle is the command line: one file per verb. It knows machines only through host/api (and the Docker socket
// whose path that tells), draws what that answers, and links no hypervisor and no cgo. Results go to standard output, what
// is under way and what went wrong to standard error; the exit status is 1 for a failure and 2 for a wrong use, but for
// `shell` and `docker`, which end as what they ran. Its neighbour is the host process, cmd/coracled, which it starts.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/paths"
)

func main() {
	a := &app{
		began:  time.Now(),
		goos:   runtime.GOOS,
		getenv: os.Getenv,
		stdin:  os.Stdin,
	}
	a.stdout, a.stderr = openScreen(os.Stdout, a.getenv), openScreen(os.Stderr, a.getenv)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	status := a.report(newRoot(a).ExecuteContext(ctx))
	stop()
	os.Exit(status)
}

// app is what every verb works with: the surroundings of the process.
type app struct {
	began          time.Time
	goos           string
	getenv         func(string) string
	stdin          *os.File
	stdout, stderr screen
}

// usageError is a wrong use of the command line, as opposed to a failure.
type usageError struct {
	err  error
	hint string
}

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// exitStatus ends the process like the program that it ran; there is nothing more to say.
type exitStatus int

func (exitStatus) Error() string { return "" }

// report tells err as a user should meet it and returns the exit status.
func (a *app) report(err error) int {
	var status exitStatus
	var usage usageError
	var failure *api.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage):
		a.complain(err.Error(), usage.hint)
		return 2
	case errors.As(err, &failure):
		a.complain(err.Error(), failure.Hint)
	case errors.Is(err, context.Canceled):
		a.complain("interrupted", "")
	default:
		a.complain(err.Error(), "")
	}
	return 1
}

func (a *app) complain(message, hint string) {
	a.stderr.printf("%s %s\n", a.stderr.paint(red, "error:"), printable(message))
	if hint != "" {
		a.stderr.printf("%s %s\n", a.stderr.paint(cyan, "hint:"), printable(hint))
	}
}

// home is Coracle's directory.
func (a *app) home() (string, error) { return paths.Home(a.goos, a.getenv) }

// machine is the one that a verb's only argument names, else $CORACLE_MACHINE, else the default. It need not exist.
func (a *app) machine(args []string) (paths.Machine, error) {
	name := a.getenv("CORACLE_MACHINE")
	if name == "" {
		name = paths.DefaultMachine
	}
	if len(args) > 0 {
		name = args[0]
	}
	home, err := a.home()
	if err != nil {
		return paths.Machine{}, err
	}
	return paths.ForMachine(home, name)
}

// answerTime is how long a host process, which answers at once, may take before we say that it hangs.
const answerTime = 3 * time.Second

// status is the machine's that args name, together with its client.
func (a *app) status(ctx context.Context, args []string) (paths.Machine, *api.Client, api.Status, error) {
	m, err := a.machine(args)
	if err != nil {
		return m, nil, api.Status{}, err
	}
	c := api.New(m)
	bounded, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	st, err := c.Status(bounded)
	if errors.Is(err, context.DeadlineExceeded) {
		err = &api.Error{Code: api.CodeInternal, Message: "machine \"" + m.Name + "\" has a host process that does not answer", Hint: "see `coracle logs " + m.Name + "`; if need be, end its process coracled and start again"}
	}
	return m, c, withDisk(st, m), err
}

// withDisk adds what the data disk takes now: no process need tell, and one that has ended cannot.
func withDisk(st api.Status, m paths.Machine) api.Status {
	if st.DiskUsed == 0 {
		st.DiskUsed = diskUsed(m.DataDisk())
	}
	return st
}
