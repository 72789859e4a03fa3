//go:build linux

package watch

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The test program plays other programs too: the first word of role says which.
const role = "WATCH_TEST_ROLE"

func TestMain(m *testing.M) {
	words := strings.Fields(os.Getenv(role))
	if len(words) == 0 {
		os.Exit(m.Run())
	}
	switch words[0] {
	case "docker-proxy":
		os.Exit(proxy(words[1], os.Args[1:]))
	case "container":
		serveStrangers(words[1])
	case "ask":
		if _, err := net.Dial("unix", words[1]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		conn, _ := net.Dial("unix", words[1])
		fmt.Fprintln(conn, `{"protocol":"tcp","port":80,"to":"1.2.3.4:80"}`)
		_, _ = io.Copy(os.Stdout, conn)
	case "listen":
		listenFor(words[1:])
	case "inside":
		os.Exit(m.Run())
	}
}

// as is this program in another role, for the test's life.
func as(t *testing.T, words ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), role+"="+strings.Join(words, " "))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: sudo go test ./guest/watch")
	}
}

// inside runs the test in a network of its own, by another process of this program; it is true in that one.
func inside(t *testing.T) bool {
	t.Helper()
	if os.Getenv(role) != "" {
		return true
	}
	needRoot(t)
	for _, tool := range []string{"ip", "nft", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: apt-get install iproute2 nftables util-linux", tool)
		}
	}
	cmd := as(t, "inside")
	cmd.Args = append(cmd.Args, "-test.run=^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS
	cmd.Stderr = nil
	b, err := cmd.CombinedOutput()
	out := string(b)
	if strings.Contains(out, "--- SKIP") {
		t.Skip(out)
	}
	if err != nil || !strings.Contains(out, "--- PASS") {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

func shell(t *testing.T, lines string) {
	t.Helper()
	for line := range strings.Lines(lines) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		f := strings.Fields(line)
		if out, err := exec.CommandContext(t.Context(), f[0], f[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "watch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}
