// Package config keeps a machine's settings: what a user chose, within what this host can give. One table names every
// setting, its key, its kind and whether a running machine follows it; the machine's config.yaml is read and written here, and
// trusted in nothing, since people edit it. Its neighbour is the host process, which asks for the settings before anything
// else is made, and later changes them through File.
package config

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/coracle-engine/coracle/host/api"
)

// Version is that of the file's format.
const Version = 1

// The least that a machine can work with, in bytes.
const (
	MinMemory = 512 << 20
	MinDisk   = 4 << 30
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// Host is what there is to share out.
type Host struct {
	CPUs   int
	Memory int64 // bytes
	// Home is the user's home, which is shared where nobody asks for anything else; empty: nothing is.
	Home string
	// Coracle is Coracle's own home, which no machine sees; empty where it is not known. ThisHost leaves it to its caller.
	Coracle string
}

// Default is what a machine gets where nobody asks for anything else: a good part of the host, not most of it, and the user's
// home without its secrets.
func Default(h Host) api.Settings {
	s := api.Settings{
		CPUs:    max(1, min(h.CPUs, 4)),
		Memory:  max(gib, min(h.Memory/4, 8*gib)) / mib * mib,
		Disk:    64 * gib,
		Ports:   api.Ports{Address: "127.0.0.1", ClientAddress: true},
		Network: api.Network{Loopback: true},
		SSH:     true,
	}
	if h.Home != "" {
		s.Shares = []api.Share{{Path: filepath.Clean(h.Home)}}
		if checkShares(s, h) != nil || missing(s.Shares[0].Path) != "" { // the homes of services are often odd
			s.Shares = nil
		}
	}
	return s
}

// home is the user's home, empty where there is none to be known.
func home() string {
	dir, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return dir
}

// Check says what of s this host cannot give, or the machine cannot follow; its errors are of class api.CodeConfig or
// api.CodeNoMemory. A shared directory that is not there is no error: see Missing.
func Check(s api.Settings, h Host) error {
	for _, check := range []func(api.Settings, Host) error{checkMachine, checkShares, checkPorts, checkNetwork, checkEngine} {
		if err := check(s, h); err != nil {
			return err
		}
	}
	return nil
}

func checkMachine(s api.Settings, h Host) error {
	switch {
	case s.Arch != "" && s.Arch != "amd64" && s.Arch != "arm64":
		return bad("ask for amd64 or arm64", "there are no guests of architecture %q", s.Arch)
	case s.CPUs < 1:
		return bad("give it at least one", "a machine with %d CPUs cannot run", s.CPUs)
	case s.CPUs > h.CPUs:
		return bad(fmt.Sprintf("ask for at most %d", h.CPUs), "%d CPUs asked for: this host has %d", s.CPUs, h.CPUs)
	case s.Memory < MinMemory:
		return bad("ask for at least "+FormatSize(MinMemory), "%s of memory are too few for the engine", FormatSize(s.Memory))
	case s.Memory%mib != 0:
		return bad("ask for whole MiB", "%s of memory asked for: not a whole number of MiB", FormatSize(s.Memory))
	case s.Memory > h.Memory:
		return &api.Error{Code: api.CodeNoMemory,
			Message: fmt.Sprintf("%s of memory asked for: this host has %s", FormatSize(s.Memory), FormatSize(h.Memory/mib*mib)),
			Hint:    fmt.Sprintf("ask for less, such as `--memory %s`", FormatSize(Default(h).Memory))}
	case s.Disk < MinDisk:
		return bad("ask for at least "+FormatSize(MinDisk), "a disk of %s is too small for images and containers", FormatSize(s.Disk))
	case s.Disk%4096 != 0:
		return bad("ask for whole MiB", "a disk of %s asked for: not a whole number of 4 KiB blocks", FormatSize(s.Disk))
	}
	return nil
}

func bad(hint, format string, args ...any) error {
	return &api.Error{Code: api.CodeConfig, Message: fmt.Sprintf(format, args...), Hint: hint}
}
