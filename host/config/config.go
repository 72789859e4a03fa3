// Package config keeps a machine's settings: what a user chose, within what this host can give. It reads and writes the
// machine's config.yaml and trusts none of it, since people edit it. Its neighbour is the host process, which asks for the
// settings once, before anything else is made.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

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
}

// Default is what a machine gets where nobody asks for anything else: a good part of the host, not most of it.
func Default(h Host) api.Settings {
	return api.Settings{
		CPUs:   max(1, min(h.CPUs, 4)),
		Memory: max(gib, min(h.Memory/4, 8*gib)) / mib * mib,
		Disk:   64 * gib,
	}
}

// Check says what of s this host cannot give; its errors are of class api.CodeConfig or api.CodeNoMemory.
func Check(s api.Settings, h Host) error {
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

// document is the file as it is written.
type document struct {
	Version int    `yaml:"version"`
	CPUs    int    `yaml:"cpus"`
	Memory  size   `yaml:"memory"`
	Disk    size   `yaml:"disk"`
	Arch    string `yaml:"arch,omitempty"`
}

const heading = "# The settings of a Coracle machine. They count from its next start; the disk can grow, not shrink.\n"

// Load reads the settings in the file at path; what it leaves out is as in def. A file that is not there is def itself.
// Errors are of class api.CodeConfig and name file and line.
func Load(path string, def api.Settings) (api.Settings, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return def, nil
	}
	if err != nil {
		return def, fmt.Errorf("read settings: %w", err)
	}
	s, err := Parse(data, def)
	if err != nil {
		return def, &api.Error{Code: api.CodeConfig, Message: fmt.Sprintf("%s: %v", path, err), Hint: "correct the file, or remove it to get the defaults"}
	}
	return s, nil
}

var unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)

// Parse decodes settings; what they leave out is as in def.
func Parse(data []byte, def api.Settings) (api.Settings, error) {
	doc := document{Version: Version, CPUs: def.CPUs, Memory: size(def.Memory), Disk: size(def.Disk), Arch: def.Arch}
	var head struct { // a later format may have keys that this one has not: say that it is later
		Version int            `yaml:"version"`
		Rest    map[string]any `yaml:",inline"`
	}
	if err := yaml.Unmarshal(data, &head); err == nil && head.Version > Version {
		return def, fmt.Errorf("settings have version %d, this program reads %d: a newer Coracle wrote them", head.Version, Version)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return def, errors.New(plain(err))
	}
	if doc.Version != Version {
		return def, fmt.Errorf("settings have version %d: want %d", doc.Version, Version)
	}
	return api.Settings{CPUs: doc.CPUs, Memory: int64(doc.Memory), Disk: int64(doc.Disk), Arch: doc.Arch}, nil
}

// plain tells a decoder's error in one line and in a user's words.
func plain(err error) string {
	var several *yaml.TypeError
	msg := err.Error()
	if errors.As(err, &several) {
		msg = strings.Join(several.Errors, "; ")
	}
	msg = unknownKey.ReplaceAllString(msg, "unknown key $1")
	return strings.TrimPrefix(msg, "yaml: ")
}

// Save writes s to path, whole or not at all.
func Save(path string, s api.Settings) error {
	var buf bytes.Buffer
	buf.WriteString(heading)
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	if err := enc.Encode(document{Version: Version, CPUs: s.CPUs, Memory: size(s.Memory), Disk: size(s.Disk), Arch: s.Arch}); err != nil {
		return err
	}
	tmp := path + "~"
	if err := os.WriteFile(tmp, buf.Bytes(), 0o600); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write settings: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}
