// Package diagnose knows what goes wrong and what to do about it: a cause and a next step for every class of error, and the
// checks that find a cause before a start does. It looks and tells; it changes nothing. Its neighbours are the host
// process, which passes every error through Explain, and the drivers, whose probes are one of the checks.
package diagnose

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/paths"
	"github.com/coracle-engine/coracle/vm"
)

// Advice is what a user should know about a class of errors.
type Advice struct {
	Cause string // what is behind it
	Next  string // what to do, where the error itself has no better hint; NAME stands for the machine
}

// Table has the advice for every code.
var Table = map[api.Code]Advice{
	api.CodeInternal:     {"a fault in Coracle, or something that it does not foresee", "see `coracle logs NAME`, and report it with that log"},
	api.CodeNotFound:     {"there is no such thing", "run `coracle list` to see the machines there are"},
	api.CodeName:         {"a machine's name becomes a file name, a host name and a docker context's name", "choose a name of up to 32 lower-case letters, digits and inner hyphens"},
	api.CodePathTooLong:  {"the system bounds the path of a socket to about a hundred bytes", "set CORACLE_HOME to a shorter directory"},
	api.CodeConfig:       {"a setting that this host or this machine cannot follow", "choose another value, by option or in the machine's config.yaml"},
	api.CodeNotInstalled: {"the program that runs virtual machines is missing", "install QEMU (on Debian and Ubuntu: `sudo apt-get install qemu-system-x86`, or qemu-system-arm), then run `coracle doctor`"},
	api.CodeNotSupported: {"this system has no driver for virtual machines yet, or lacks what it needs", "run `coracle doctor` to see what is missing"},
	api.CodeNoImage:      {"the guest image is not where it is looked for", "run `make images` in the checkout, or set CORACLE_IMAGE to the image's directory"},
	api.CodeAssetCorrupt: {"a file of the guest image is not what its manifest says", "run `make images` to build it again, or install Coracle again"},
	api.CodeNoMemory:     {"the host cannot give the memory that was asked for", "ask for less with --memory, or end other programs"},
	api.CodeDiskFull:     {"the disk with Coracle's home is full", "free some space, or set CORACLE_HOME to another disk; then start again"},
	api.CodeDataDisk:     {"the machine's data disk is not a plain raw file", "move it away (it may hold data), then start again"},
	api.CodeRunning:      {"another process owns the machine", "run `coracle stop NAME` first"},
	api.CodeNotRunning:   {"the machine is not running", "run `coracle start NAME`"},
	api.CodeGuestTimeout: {"the guest did not come up: a very busy host, or a fault in the guest", "start again; if it stays so, see `coracle logs NAME`"},
	api.CodeGuestFailed:  {"the guest came up and then met an error", "see `coracle logs NAME`, then start again"},
	api.CodeCrashed:      {"the hypervisor's process ended, by a fault or by somebody's signal", "start again: what was on disk is kept; see `coracle logs NAME` for its last words"},
	api.CodePortInUse:    {"another program listens there", "end that program, or choose another port"},
	api.CodeShare:        {"a directory that the machine's settings share is not there, or is none", "make the directory, or run `coracle config remove shares PATH`"},
	api.CodeEngine:       {"the Docker Engine does not take a key of its settings", "see `coracle logs NAME`, then run `coracle config remove engine.KEY`"},
	api.CodeRestart:      {"a running machine cannot follow this setting without losing containers", "run `coracle stop NAME`, then `coracle start NAME`"},
	api.CodePermission:   {"a file or directory does not belong to this user", "give it back to this user, or set CORACLE_HOME to a directory of yours"},
}

// classes maps what the layers below return to codes, the more telling first.
var classes = []struct {
	err  error
	code api.Code
}{
	{vm.ErrNotInstalled, api.CodeNotInstalled},
	{vm.ErrAssetCorrupt, api.CodeAssetCorrupt},
	{vm.ErrNoMemory, api.CodeNoMemory},
	{vm.ErrDiskFull, api.CodeDiskFull},
	{vm.ErrPortInUse, api.CodePortInUse},
	{vm.ErrGuestFailed, api.CodeGuestFailed},
	{vm.ErrCrashed, api.CodeCrashed},
	{vm.ErrGuestTimeout, api.CodeGuestTimeout},
	{vm.ErrConfig, api.CodeConfig},
	{vm.ErrRunning, api.CodeRunning},
	{vm.ErrNotRunning, api.CodeNotRunning},
	{vm.ErrRefused, api.CodeGuestFailed},
	{vm.ErrNotSupported, api.CodeNotSupported},
	{errors.ErrUnsupported, api.CodeNotSupported},
	{paths.ErrName, api.CodeName},
	{paths.ErrTooLong, api.CodePathTooLong},
	{syscall.ENOSPC, api.CodeDiskFull},
	{syscall.ENOMEM, api.CodeNoMemory},
	{fs.ErrPermission, api.CodePermission},
	{context.DeadlineExceeded, api.CodeGuestTimeout},
}

// Explain makes of any error one for a user: its class, its words, and a next step that names machine where one is needed.
// It leaves err itself as it is.
func Explain(err error, machine string) *api.Error {
	if err == nil {
		return nil
	}
	out := api.Error{Code: api.CodeInternal}
	var e *api.Error
	if errors.As(err, &e) {
		out = *e
	} else {
		for _, c := range classes {
			if errors.Is(err, c.err) {
				out.Code = c.code
				break
			}
		}
	}
	out.Message = err.Error()
	if out.Hint == "" {
		out.Hint = strings.ReplaceAll(Table[out.Code].Next, " NAME", strings.TrimSuffix(" "+machine, " "))
	}
	return &out
}

// Subject is what Checks looks at.
type Subject struct {
	Home    string
	Drivers []vm.Driver
	// Image finds the guest image and says which it is.
	Image func() (string, error)
	// Space is how much of the home's disk is free and how much a start needs, in bytes.
	Space func() (free, needed int64, err error)
	// Memory is the host's memory in bytes, Default what a new machine would get of it.
	Memory, Default int64
	// Settings reads a machine's settings and checks them; nil: nobody asks.
	Settings func(name string) (api.Settings, error)
	// Watches is how many directories can be watched; 0: there is no limit, or nobody asks.
	Watches int
}

// Checks looks for whatever could keep a machine from starting, without changing anything.
func Checks(ctx context.Context, s Subject) []api.Check {
	checks := []api.Check{checkHome(s.Home), checkSockets(s.Home), checkSpace(s), checkMemory(s)}
	checks = append(checks, checkDrivers(ctx, s.Drivers)...)
	checks = append(checks, checkImage(s))
	checks = append(checks, checkWatches(s.Watches)...)
	return append(checks, checkMachines(ctx, s)...)
}

func failed(name string, err error) api.Check {
	e := Explain(err, "")
	return api.Check{Name: name, Level: api.CheckFail, Detail: e.Message, Hint: e.Hint, Code: e.Code}
}

func ok(name, format string, args ...any) api.Check {
	return api.Check{Name: name, Level: api.CheckOK, Detail: fmt.Sprintf(format, args...)}
}
