// Package program builds the Go programs of an image: the engine's, unmodified, from the module images/engine that pins
// them, and our guest. It knows what each was linked from, for the bill of materials. The same sources and the same
// toolchain give the same bytes, wherever the checkout lies.
package program

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/coracle-engine/coracle/images/tree"
)

// Program is a built program.
type Program struct {
	Name    string
	Version string // of the module that it comes from
	Path    string // on this machine
	Content tree.Content
	Info    *buildinfo.BuildInfo
	Static  []Library // C libraries that are linked into it
}

// Library is a C library of the machine's own Debian that is linked into a program.
type Library struct {
	Name, Version string
	Copyright     []byte // its package's copyright file, where it is at hand
	License       string
	SHA256        string // of its package, where that is known
}

// module is what `go list -m -json` tells.
type module struct {
	Path    string
	Version string
	Time    time.Time
}

// recipe says how one program of the engine is built.
type recipe struct {
	name, pkg, module string
	tags              []string
	set               func(m module) []string // linker variables: true versions, not "library-import"
	seccomp           bool                    // cgo, with libseccomp, linked statically
}

const (
	moby       = "github.com/moby/moby/v2"
	containerd = "github.com/containerd/containerd/v2"
	runc       = "github.com/opencontainers/runc"
)

// noDrivers leaves out storage drivers that the guest's kernel has no use for, and with them cgo.
var noDrivers = []string{"no_btrfs", "no_zfs", "no_devmapper"}

// engine is what the engine consists of. A module tells no commit, so where a program reports one, its tag stands there:
// the same thing to git.
var engine = []recipe{
	{name: "dockerd", pkg: moby + "/cmd/dockerd", module: moby, tags: noDrivers, set: func(m module) []string {
		v := moby + "/dockerversion."
		return []string{v + "Version=" + strings.TrimPrefix(m.Version, "v"), v + "GitCommit=" + m.Version,
			v + "BuildTime=" + m.Time.UTC().Format(time.RFC3339), v + "PlatformName=Coracle"}
	}},
	{name: "containerd", pkg: containerd + "/cmd/containerd", module: containerd, tags: noDrivers, set: containerdVersion},
	{name: "containerd-shim-runc-v2", pkg: containerd + "/cmd/containerd-shim-runc-v2", module: containerd, tags: noDrivers, set: containerdVersion},
	{name: "runc", pkg: runc, module: runc, tags: []string{"seccomp", "urfave_cli_no_docs", "netgo", "osusergo"}, seccomp: true,
		set: func(module) []string { return nil }}, // it embeds its version
}

func containerdVersion(m module) []string {
	v := containerd + "/version."
	return []string{v + "Version=" + m.Version, v + "Revision=" + m.Version}
}

// Builder builds for one architecture.
type Builder struct {
	Root  string // the checkout
	Cache string
	Arch  string
	// Seccomp unpacks libseccomp's development files for Arch and returns the directory that is their root.
	Seccomp func(ctx context.Context) (Library, string, error)
}

// Engine builds the engine's programs, or takes them from the cache where nothing that goes into them has changed.
func (b Builder) Engine(ctx context.Context) ([]*Program, error) {
	var out []*Program
	for _, r := range engine {
		p, err := b.engine(ctx, r)
		if err != nil {
			return nil, fmt.Errorf("build %s: %w", r.name, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func (b Builder) engine(ctx context.Context, r recipe) (*Program, error) {
	dir := filepath.Join(b.Root, "images", "engine")
	listed, err := b.run(ctx, dir, nil, "go", "list", "-m", "-json", r.module)
	if err != nil {
		return nil, err
	}
	var m module
	if err := json.Unmarshal(listed, &m); err != nil {
		return nil, fmt.Errorf("read go list's answer: %w", err)
	}
	ldflags := "-s -w -buildid="
	for _, set := range r.set(m) {
		ldflags += " -X " + set
	}
	var env []string
	var static []Library
	if r.seccomp {
		ldflags += " -linkmode external -extldflags '-static -Wl,--build-id=none'"
		if env, static, err = b.cgo(ctx); err != nil {
			return nil, err
		}
	}
	key, err := b.key(ctx, dir, append(env, ldflags, r.pkg, strings.Join(r.tags, ",")))
	if err != nil {
		return nil, err
	}
	out := filepath.Join(b.Cache, "programs", b.Arch+"-"+key, r.name)
	if _, err := os.Stat(out); err != nil {
		if err := b.build(ctx, dir, env, out, r.pkg, ldflags, r.tags); err != nil {
			return nil, err
		}
	}
	p, err := read(r.name, m.Version, out)
	if err != nil {
		return nil, err
	}
	p.Static = static
	return p, nil
}

// Guest builds our PID 1 from the checkout.
func (b Builder) Guest(ctx context.Context, version string) (*Program, error) {
	out := filepath.Join(b.Cache, "programs", b.Arch+"-guest", "coracle-guest")
	if err := b.build(ctx, b.Root, nil, out, "./cmd/coracle-guest", "-s -w -buildid=", nil); err != nil {
		return nil, fmt.Errorf("build coracle-guest: %w", err)
	}
	return read("coracle-guest", version, out)
}

// Prebuilt takes a guest that somebody else built.
func Prebuilt(path, version string) (*Program, error) { return read("coracle-guest", version, path) }

func (b Builder) build(ctx context.Context, dir string, env []string, out, pkg, ldflags string, tags []string) error {
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	temp := out + ".part"
	args := []string{"build", "-trimpath", "-buildvcs=false", "-mod=readonly", "-ldflags=" + ldflags,
		"-tags=" + strings.Join(tags, ","), "-o", temp, pkg}
	if _, err := b.run(ctx, dir, env, "go", args...); err != nil {
		return err
	}
	return os.Rename(temp, out)
}

// run runs a tool of Go with an environment in which the machine's own settings change no byte of the outcome.
func (b Builder) run(ctx context.Context, dir string, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+b.Arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=", "GOWORK=off",
		"GOEXPERIMENT=", "CGO_ENABLED=0", "LC_ALL=C")
	cmd.Env = append(cmd.Env, env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run %s %s: %w\n%s", name, args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

// key names everything that a build depends on.
func (b Builder) key(ctx context.Context, dir string, settings []string) (string, error) {
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return "", err
		}
		h.Write(data)
	}
	version, err := b.run(ctx, dir, nil, "go", "version")
	if err != nil {
		return "", err
	}
	fmt.Fprintf(h, "%s %q", version, settings)
	return hex.EncodeToString(h.Sum(nil)[:12]), nil
}

// ModuleCache returns where Go keeps the sources of modules.
func (b Builder) ModuleCache(ctx context.Context) (string, error) {
	out, err := b.run(ctx, b.Root, nil, "go", "env", "GOMODCACHE")
	return strings.TrimSpace(string(out)), err
}

func read(name, version, path string) (*Program, error) {
	c, err := tree.File(path)
	if err != nil {
		return nil, err
	}
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read what %s was built from: %w", path, err)
	}
	return &Program{Name: name, Version: version, Path: path, Content: c, Info: info}, nil
}
