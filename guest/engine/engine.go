//go:build linux

// Package engine is the real Docker Engine as two services: containerd and dockerd, unmodified, configured for a guest whose
// root is read-only and whose data is one disk. It writes their configuration and brings a new one into force without losing
// containers, says whom they trust, and finds out that the API answers. guest/service runs them, guest/agent composes the two
// and relays the API's socket.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/service"
)

// The services' names.
const (
	Containerd = "containerd"
	Dockerd    = "dockerd"
)

// The names under which what is not in force is told of.
const (
	Settings = "engine settings"
	Trust    = "certificates"
)

// Socket is where dockerd's API answers.
const Socket = "/run/docker.sock"

const (
	containerdSocket = "/run/containerd/containerd.sock"
	containerdConfig = "/run/containerd-etc/config.toml"
	daemonConfig     = "/run/docker-etc/daemon.json"
	notifyDir        = "/run/notify"
	dockerdPath      = "/usr/bin/dockerd"
	caBundle         = "/etc/ssl/certs/ca-certificates.crt"
	caJoined         = "/run/coracle/ca-certificates.crt"
)

// environment is what both run with, and all that they run.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}

// stopGrace is how long dockerd may take to stop all containers. It keeps its own time for each container's stop signal
// (15 s, or what the container asks for) and ends by itself; this is for the case that it does not, or that a container asks
// for more. What comes after it (containerd's end, the file systems') has the rest of the time that the host gives.
const stopGrace = api.ShutdownTime - 30*time.Second

// Config is what an Engine needs from the outside.
type Config struct {
	Reaper *service.Reaper
	Output func(source string) io.Writer
	// Step is called when a step of the start begins, and the function that it returns when it ends.
	Step func(name string) (end func())
	// Refused is called when a part of the first Spec, Settings or Trust, is not in force, and the engine starts without it;
	// and with no error when a later Spec has mended that.
	Refused func(part string, why error)
	// Before returns when dockerd may start: it starts containers by itself. May be nil.
	Before func(ctx context.Context) error
	// Ready returns when dockerd answers. May be nil.
	Ready func(ctx context.Context) error
	// Restart ends dockerd's service and returns when it is ready again.
	Restart func(ctx context.Context) error
}

// Engine is containerd and dockerd with their settings.
type Engine struct {
	c       Config
	dockerd *service.Process
	said    *said
	file    file
	trust   trust
	daemon  daemon // what Apply drives: dockerd

	containerd string // its configuration's path

	first    atomic.Bool // dockerd has not been ready yet
	applying atomic.Bool // dockerd ends to be started again

	mu   sync.Mutex // held while settings change
	left refusals
}

// refusals are what of the first Spec was left out: it is no reason to refuse later ones that still have it.
type refusals struct {
	sync.Mutex
	booted, daemon string
	trust          string
}

// without returns spec as it can be.
func (r *refusals) without(spec api.Spec) api.Spec {
	r.Lock()
	defer r.Unlock()
	if r.daemon != "" && string(spec.Daemon) == r.daemon {
		spec.Daemon = nil
	}
	if r.trust != "" && spec.Certificates == r.trust {
		spec.Certificates = ""
	}
	return spec
}

// mended says which of the parts that were left out spec no longer has as they were.
func (r *refusals) mended(spec api.Spec) []string {
	r.Lock()
	defer r.Unlock()
	var parts []string
	if r.daemon != "" && string(spec.Daemon) != r.daemon {
		r.daemon, parts = "", append(parts, Settings)
	}
	if r.trust != "" && spec.Certificates != r.trust {
		r.trust, parts = "", append(parts, Trust)
	}
	return parts
}

// New returns the engine that c makes. It starts with Units.
func New(c Config) *Engine {
	e := &Engine{c: c, said: &said{to: c.Output(Dockerd)}, file: file{path: daemonConfig}, trust: trust{bundle: caBundle, joined: caJoined}, containerd: containerdConfig}
	e.dockerd = &service.Process{
		Label: Dockerd, Path: dockerdPath, Args: []string{"--config-file", daemonConfig}, Env: environment,
		// dockerd looks for what the kernel can limit in its own control group, and the root group has no limits.
		Cgroup:   "/sys/fs/cgroup/engine",
		OOMScore: -500, Grace: stopGrace, Output: e.said, Reaper: c.Reaper,
		Notify: filepath.Join(notifyDir, Dockerd),
		Check: func(ctx context.Context) error {
			end := c.Step("engine answers")
			defer end()
			return ping(ctx, Socket)
		},
		Before: c.Before, Leave: e.leave,
	}
	e.daemon = dockerd{e}
	e.first.Store(true)
	return e
}

// Prepare makes spec what the engine starts with. What of spec cannot be is told to Refused, and left out: an engine without
// a setting is of more use than none.
func (e *Engine) Prepare(spec api.Spec) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := replace(e.containerd, []byte(containerdTOML)); err != nil {
		return err
	}
	e.left.Lock()
	defer e.left.Unlock()
	if err := e.trust.set(spec.Certificates); err != nil {
		e.left.trust = spec.Certificates
		e.c.Refused(Trust, err)
	}
	plain := spec
	plain.Daemon = nil
	base, err := render(plain)
	if err != nil {
		return err
	}
	e.left.booted = string(spec.Daemon)
	want, err := render(spec)
	if err != nil {
		e.left.daemon = e.left.booted
		e.c.Refused(Settings, err)
		return e.file.set(base, nil)
	}
	if len(want.differ(base)) == 0 {
		return e.file.set(want, nil)
	}
	return e.file.set(want, base)
}

// Units returns containerd and dockerd. They start side by side: dockerd waits for containerd's socket by itself, and its
// own start is the longer one. When they stop, containerd outlives dockerd, which needs it to stop containers. needs are
// services that must be ready before dockerd starts.
func (e *Engine) Units(needs ...string) []service.Unit {
	containerd := &service.Process{
		Label: Containerd, Path: "/usr/bin/containerd", Args: []string{"--config", containerdConfig}, Env: environment,
		OOMScore: -999, Grace: 10 * time.Second, Output: e.c.Output(Containerd), Reaper: e.c.Reaper,
		Notify: filepath.Join(notifyDir, Containerd),
	}
	return []service.Unit{{Service: containerd}, {Service: starter{e}, Needs: needs, Uses: []string{Containerd}}}
}

// starter is dockerd as a service that falls back to other settings where it does not start.
type starter struct{ e *Engine }

// Name implements service.Service.
func (s starter) Name() string { return Dockerd }

// Run implements service.Service.
func (s starter) Run(ctx context.Context, ready func()) error {
	e, up := s.e, atomic.Bool{}
	e.said.forget()
	err := e.dockerd.Run(ctx, func() {
		up.Store(true)
		why := e.file.started()
		if e.first.Swap(false) && why != nil {
			e.left.Lock()
			e.left.daemon = e.left.booted
			e.left.Unlock()
			e.c.Refused(Settings, fmt.Errorf("docker does not start with these settings: %w", why))
		}
		ready()
	})
	if up.Load() || ctx.Err() != nil {
		return err
	}
	if text := e.said.reason(); text != "" {
		err = errors.New(text)
	}
	return errors.Join(err, e.file.failed(err))
}

// containerdTOML leaves out what dockerd never asks for: each plugin costs time at the start, and opt wants to write to the
// read-only root. A line for each plugin that loads costs time too, on a serial console more than the plugin itself.
const containerdTOML = `version = 4
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = -999
imports = []
disabled_plugins = [
  "io.containerd.internal.v1.opt",
  "io.containerd.grpc.v1.cri",
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.nri.v1.nri",
  "io.containerd.image-verifier.v1.bindir",
  "io.containerd.monitor.container.v1.restart",
  "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs",
  "io.containerd.snapshotter.v1.zfs",
  "io.containerd.differ.v1.erofs",
  "io.containerd.mount-handler.v1.erofs",
  "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]

[debug]
level = "warn"
`
