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
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sshAgent puts something in the place of the user's agent that a container can be heard to talk to.
func sshAgent(t *testing.T, u *user) {
	const socket = "/run/host-services/ssh-auth.sock"
	args := []string{"run", "--rm", "--user", "1000", "-v", socket + ":" + socket, "toolbox", "agent", socket}
	if r := u.run(t.Context(), nil, "docker", args...); r.code != 1 {
		t.Errorf("without an agent: %s", r)
	}
	l, err := net.Listen("unix", u.agent())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// SSH_AGENTC_REQUEST_IDENTITIES (11) is answered with SSH_AGENT_IDENTITIES_ANSWER (12): seven, of which none follows
			// (draft-miller-ssh-agent, 3.5).
			if ask := make([]byte, 5); func() bool { _, err := io.ReadFull(c, ask); return err == nil && ask[4] == 11 }() {
				c.Write([]byte{0, 0, 0, 5, 12, 0, 0, 0, 7})
			}
			c.Close()
		}
	}()
	if got := u.docker(t, args...); got != "7 keys" {
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

// proxyReached has the engine pull and build through a proxy on the host's loopback, from a registry that does not exist.
func proxyReached(t *testing.T, u *user) {
	asked := make(chan string, 100)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case asked <- r.Host:
		default:
		}
		http.Error(w, "the proxy was here", http.StatusTeapot)
	})}
	go s.Serve(l)
	defer s.Close()
	const registry = "registry.invalid:5000"
	u.ok(t, "coracle", "config", "add", "engine.insecure-registries", registry)
	defer u.ok(t, "coracle", "config", "remove", "engine.insecure-registries", registry)
	for _, key := range []string{"network.http-proxy", "network.https-proxy"} {
		u.ok(t, "coracle", "config", "set", key, "http://"+l.Addr().String())
		defer u.ok(t, "coracle", "config", "remove", key)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+registry+"/nothing\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"pull", "-q", registry + "/nothing"}, {"build", "-q", dir}} {
		for len(asked) > 0 {
			<-asked
		}
		r := u.run(t.Context(), nil, "docker", args...)
		select {
		case host := <-asked:
			if host != registry || r.code == 0 {
				t.Errorf("docker %s: the proxy was asked for %s, %s", args[0], host, r)
			}
		default:
			t.Errorf("docker %s: the proxy was not asked: %s", args[0], r)
		}
	}
}

// clockAfterSleep: the guest's time is right within 100 ms after the virtual machine stood still, and after the host's own
// clock jumped, as it does when a computer wakes.
func clockAfterSleep(t *testing.T, u *user) {
	p := u.ask(t, u.files, "--privileged")
	defer p.end()
	off := func() time.Duration {
		began := time.Now()
		var ns int64
		fmt.Sscan(p.do(t, "now"), &ns)
		return time.Unix(0, ns).Sub(began.Add(time.Since(began) / 2))
	}
	right := func(when string) {
		t.Helper()
		if d := off().Abs(); d > 100*time.Millisecond {
			t.Errorf("%s: the guest's clock is wrong by %v", when, d)
		} else {
			t.Logf("%s: wrong by %v", when, d)
		}
	}
	p.do(t, "now") // the container is up
	right("at first")
	pids := processes(t, "guest=coracle-default", filepath.Dir(u.home))
	if len(pids) != 1 {
		t.Fatalf("QEMU runs as %v", pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second)
	if err := syscall.Kill(pids[0], syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	right("100 ms after a stop of 3 s")

	if got := p.do(t, "set-clock -3600"); got != "ok" {
		t.Fatal(got)
	}
	if d := off(); d > -time.Hour+time.Second {
		t.Fatalf("the clock cannot be made wrong: %v", d)
	}
	now := unix.NsecToTimespec(time.Now().UnixNano()) // a jump of nothing is a jump
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Skipf("set the host's clock: %v", err)
	}
	time.Sleep(100 * time.Millisecond)
	right("100 ms after the host's clock jumped")
}
