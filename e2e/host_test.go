//go:build linux

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sshAgent puts something in the place of the user's agent that a container can be heard to talk to.
func sshAgent(t *testing.T, u *user) {
	const socket = "/run/host-services/ssh-auth.sock"
	args := []string{"run", "--rm", "--user", "1000", "-v", socket + ":" + socket, "toolbox", "unixget", socket, "/keys"}
	if r := u.run(t.Context(), nil, "docker", args...); r.code != 1 {
		t.Errorf("without an agent: %s", r)
	}
	l, err := net.Listen("unix", u.agent())
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "the user's "+r.URL.Path[1:]) })}
	go s.Serve(l)
	defer s.Close()
	if got := u.docker(t, args...); got != "the user's keys" {
		t.Errorf("got %q", got)
	}
	u.ok(t, "coracle", "config", "set", "ssh", "false")
	defer u.ok(t, "coracle", "config", "set", "ssh", "true")
	if r := u.run(t.Context(), nil, "docker", args...); r.code == 0 {
		t.Errorf("with ssh off: %s", r)
	}
}

// registry builds a true registry from its pinned module and runs it on the host's loopback; it returns its port.
func registry(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	bin := filepath.Join(dir, "registry")
	cmd := exec.Command("go", "build", "-trimpath", "-o", bin, "github.com/distribution/distribution/v3/cmd/registry")
	cmd.Dir = filepath.Join(root, "e2e/registry")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build registry: %v\n%s", err, out)
	}
	port := freePort(t)
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: 127.0.0.1:%s}\n", filepath.Join(dir, "data"), port)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	run := exec.Command(bin, "serve", config)
	run.Stdout, run.Stderr = os.Stderr, os.Stderr
	run.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run.Process.Kill(); run.Wait() })
	eventually(t, 20*time.Second, func() error {
		resp, err := http.Get("http://127.0.0.1:" + port + "/v2/")
		if err == nil {
			resp.Body.Close()
		}
		return err
	})
	return port
}

// registryOnHost pushes an image to a registry on the host's loopback and pulls it from there.
func registryOnHost(t *testing.T, u *user) {
	host := "host.docker.internal:" + registry(t)
	u.ok(t, "coracle", "config", "add", "engine.insecure-registries", host)
	defer u.ok(t, "coracle", "config", "remove", "engine.insecure-registries", host)
	image := host + "/team/toolbox:1"
	u.docker(t, "tag", "toolbox", image)
	u.docker(t, "push", "-q", image)
	u.docker(t, "rmi", image)
	u.docker(t, "pull", "-q", image)
	if got := u.docker(t, "run", "--rm", image, "echo", "pulled"); got != "pulled" {
		t.Errorf("got %q", got)
	}
	r := u.run(t.Context(), nil, "docker", "pull", "-q", host+"/team/nothing:1")
	if r.code == 0 || !strings.Contains(r.stderr, "not found") {
		t.Errorf("an image that is not there: %s", r)
	}
}
