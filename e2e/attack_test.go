//go:build linux

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// scanGateway is CVE-2025-9074 and gvisor-tap-vsock's issue 78: a container looks at every port of every address that it can
// know, and finds no Docker and no control door. facts/faults.md, test 1.
func scanGateway(t *testing.T, u *user) {
	u.ok(t, "coracle", "config", "set", "network.loopback", "false")
	defer u.ok(t, "coracle", "config", "set", "network.loopback", "true")
	for _, host := range []string{"gateway.docker.internal", "host.docker.internal", "192.168.65.3"} {
		got := strings.Split(u.docker(t, "run", "--rm", "toolbox", "scan", host), "\n")
		if got[len(got)-1] != "scanned" {
			t.Fatalf("%s: the scan ended with %q", host, got)
		}
		for _, line := range got[:len(got)-1] {
			if port, answer, _ := strings.Cut(line, " "); port != "53" || answer != `""` {
				t.Errorf("%s: port %s answers %s", host, port, answer)
			}
		}
	}
}

// vsock32 is CVE-2026-112917: 32-bit programs open sockets by another system call. facts/faults.md, test 2.
func vsock32(t *testing.T, u *user) {
	dir := t.TempDir()
	goBuild(t, "386", "./e2e/toolbox", filepath.Join(dir, "toolbox"))
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY toolbox /toolbox\nENTRYPOINT [\"/toolbox\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	u.docker(t, "build", "-q", "--platform", "linux/amd64", "-t", "toolbox32", dir)
	if got := u.docker(t, "run", "--rm", "toolbox32", "echo", "runs"); got != "runs" {
		t.Fatalf("got %q", got)
	}
	for _, image := range []string{"toolbox", "toolbox32"} {
		for _, flags := range [][]string{{"--network", "bridge"}, {"--network", "host"}, {"--privileged"}} {
			args := append(append([]string{"run", "--rm"}, flags...), image, "vsocks")
			if got := u.docker(t, args...); got != "none answers" {
				t.Errorf("%s %v: %s", image, flags, got)
			}
		}
	}
}

// hostListeners is CVE-2021-4024: nothing of ours listens on the network but what was published. facts/faults.md, test 4.
func hostListeners(t *testing.T, u *user) {
	port := freePort(t)
	u.publish(t, []string{"-p", port + ":7"}, "listen", "7")
	out, err := exec.Command("ss", "-Hltnup").Output()
	if err != nil {
		t.Skipf("ss: %v: install iproute2", err)
	}
	pids := map[string]bool{}
	for _, pid := range append(processes(t, "coracled", u.home), processes(t, "guest=coracle", u.home)...) {
		pids[fmt.Sprintf("pid=%d,", pid)] = true
	}
	found := false
	for line := range strings.Lines(string(out)) {
		for pid := range pids {
			if !strings.Contains(line, pid) {
				continue
			}
			host, p, _ := net.SplitHostPort(strings.Fields(line)[4])
			if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() || p != port {
				t.Errorf("this listens: %s", line)
			}
			found = true
		}
	}
	if !found {
		t.Errorf("not even the published port is there:\n%s", out)
	}
	err = filepath.WalkDir(u.home, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type()&os.ModeSocket != 0 {
			if st, err := d.Info(); err == nil && st.Mode().Perm() != 0o600 {
				t.Errorf("socket %s has mode %s", path, st.Mode())
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
