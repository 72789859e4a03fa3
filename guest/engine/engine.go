//go:build linux

// Package engine is the real Docker Engine as two services: containerd and dockerd, unmodified, configured for a guest whose
// root is read-only and whose data is one disk. It writes their configuration, says what they need, and finds out that the
// API answers. guest/service runs them, guest/agent composes the two and relays the API's socket.
package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/service"
)

// The services' names.
const (
	Containerd = "containerd"
	Dockerd    = "dockerd"
)

// Socket is where dockerd's API answers.
const Socket = "/run/docker.sock"

const (
	containerdSocket = "/run/containerd/containerd.sock"
	containerdConfig = "/run/containerd-etc/config.toml"
	daemonConfig     = "/run/docker-etc/daemon.json"
	notifyDir        = "/run/notify"
)

// environment is what both run with, and all that they run.
var environment = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}

// stopGrace is how long dockerd may take to stop all containers. It keeps its own time for each container's stop signal
// (15 s, or what the container asks for) and ends by itself; this is for the case that it does not, or that a container asks
// for more. What comes after it (containerd's end, the file systems') has the rest of the time that the host gives.
const stopGrace = api.ShutdownTime - 30*time.Second

// Config is what Units needs from the outside.
type Config struct {
	Reaper *service.Reaper
	Output func(source string) io.Writer
	// Step is called when a step of the start begins, and the function that it returns when it ends.
	Step func(name string) (end func())
}

// Units returns containerd and dockerd. They start side by side: dockerd waits for containerd's socket by itself, and its
// own start is the longer one. When they stop, containerd outlives dockerd, which needs it to stop containers.
func Units(c Config) ([]service.Unit, error) {
	if err := os.MkdirAll(filepath.Dir(containerdConfig), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(containerdConfig, []byte(containerdTOML), 0o644); err != nil {
		return nil, err
	}
	containerd := &service.Process{
		Label: Containerd, Path: "/usr/bin/containerd", Args: []string{"--config", containerdConfig}, Env: environment,
		OOMScore: -999, Grace: 10 * time.Second, Output: c.Output(Containerd), Reaper: c.Reaper,
		Notify: filepath.Join(notifyDir, Containerd),
	}
	dockerd := &service.Process{
		Label: Dockerd, Path: "/usr/bin/dockerd", Args: []string{"--config-file", daemonConfig}, Env: environment,
		// dockerd looks for what the kernel can limit in its own control group, and the root group has no limits.
		Cgroup:   "/sys/fs/cgroup/engine",
		OOMScore: -500, Grace: stopGrace, Output: c.Output(Dockerd), Reaper: c.Reaper,
		Notify: filepath.Join(notifyDir, Dockerd),
		Check: func(ctx context.Context) error {
			end := c.Step("engine answers")
			defer end()
			return ping(ctx, Socket)
		},
	}
	return []service.Unit{{Service: containerd}, {Service: dockerd, Uses: []string{Containerd}}}, nil
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

// own are the keys of daemon.json that make dockerd this guest's; nobody else may set them.
var own = map[string]any{
	"hosts":      []string{"unix://" + Socket},
	"containerd": containerdSocket,
	"data-root":  "/var/lib/docker",
	"exec-root":  "/run/docker",
	"pidfile":    "/run/docker.pid",
}

// defaults are the keys that a Spec may override. nftables takes one program run where iptables takes a hundred; Swarm with
// it is behind a feature of its own.
var defaults = map[string]any{
	"firewall-backend": "nftables",
	"userland-proxy":   false,
	"features":         map[string]any{"swarm-nftables": true},
}

// DaemonJSON merges a Spec's daemon keys into this guest's. An empty extra is no keys.
func DaemonJSON(extra json.RawMessage) ([]byte, error) {
	merged := map[string]any{}
	if len(bytes.TrimSpace(extra)) > 0 {
		if err := json.Unmarshal(extra, &merged); err != nil {
			return nil, fmt.Errorf("parse daemon keys: %w", err)
		}
		if merged == nil { // the JSON null
			merged = map[string]any{}
		}
	}
	for key, value := range own {
		if _, taken := merged[key]; taken {
			return nil, fmt.Errorf("daemon key %q is coracle's own: remove it", key)
		}
		merged[key] = value
	}
	for key, value := range defaults {
		have, given := merged[key]
		if base, ok := value.(map[string]any); ok {
			features, ok := have.(map[string]any)
			if given && !ok {
				return nil, fmt.Errorf("daemon key %q is not an object", key)
			}
			both := map[string]any{}
			for k, v := range base {
				both[k] = v
			}
			for k, v := range features {
				both[k] = v
			}
			merged[key] = both
		} else if !given {
			merged[key] = value
		}
	}
	return json.MarshalIndent(merged, "", "  ")
}

// SetDaemon writes daemon.json for the next start of dockerd and says whether it differs from what was there.
func SetDaemon(extra json.RawMessage) (changed bool, err error) {
	data, err := DaemonJSON(extra)
	if err != nil {
		return false, err
	}
	return replace(daemonConfig, data)
}

func replace(path string, data []byte) (changed bool, err error) {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return false, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return false, err
	}
	return true, os.Rename(tmp, path)
}

// ping asks the API at socket whether it answers, as any client would.
func ping(ctx context.Context, socket string) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return fmt.Errorf("ping engine: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ping engine: it answered %s", resp.Status)
	}
	return nil
}
