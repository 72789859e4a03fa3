//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

type status struct {
	Name, State, Accelerator, Context string
	DockerSocket                      string
}

func (u *user) status(tb testing.TB, name string) status {
	tb.Helper()
	var s status
	if err := json.Unmarshal([]byte(u.ok(tb, "coracle", "status", "--json", name)), &s); err != nil {
		tb.Fatal(err)
	}
	return s
}

// TestLifecycle follows one machine's data through every way a machine can end.
func TestLifecycle(t *testing.T) {
	needVM(t)
	u := newUser(t)
	u.ok(t, "coracle", "start", "--cpus", "2", "--memory", "1GiB", "--disk", "8GiB")
	u.toolboxImage(t)
	u.docker(t, "volume", "create", "kept")
	u.docker(t, "run", "--name", "writer", "-v", "kept:/data", "-v", "/anon", "toolbox", "write", "/data/note", "still here")
	u.docker(t, "run", "--name", "nameless", "-v", "/anon", "toolbox", "write", "/anon/note", "anonymous too")
	u.docker(t, "run", "-d", "--name", "polite", "-v", "kept:/data", "toolbox", "stop", "/data/goodbye")
	u.docker(t, "run", "-d", "--name", "always", "--restart", "always", "toolbox", "hold")

	intact := func(t *testing.T) {
		t.Helper()
		if got := u.docker(t, "run", "--rm", "-v", "kept:/data", "toolbox", "cat", "/data/note"); got != "still here" {
			t.Errorf("the named volume holds %q", got)
		}
		if got := u.docker(t, "run", "--rm", "--volumes-from", "nameless", "toolbox", "cat", "/anon/note"); got != "anonymous too" {
			t.Errorf("the anonymous volume holds %q", got)
		}
		eventually(t, 30*time.Second, func() error {
			if got := u.docker(t, "inspect", "-f", "{{.State.Running}}", "always"); got != "true" {
				return fmt.Errorf("the container that restarts always is running: %s", got)
			}
			return nil
		})
	}

	t.Run("stop and start", func(t *testing.T) {
		u.ok(t, "coracle", "stop")
		if got := u.status(t, "default").State; got != "stopped" {
			t.Errorf("state after stop: %s", got)
		}
		eventually(t, 3*time.Second, func() error { // the host process itself ends after it has told
			if left := processes(t, u.home); len(left) != 0 {
				return fmt.Errorf("processes left after stop: %v", left)
			}
			return nil
		})
		if got := u.docker(t, "context", "show"); got != "default" {
			t.Errorf("stop left the context at %s", got)
		}
		u.ok(t, "coracle", "start")
		intact(t)
		if got := u.docker(t, "run", "--rm", "-v", "kept:/data", "toolbox", "cat", "/data/goodbye"); got != "stopped in order" {
			t.Errorf("the container that waits for SIGTERM left %q", got)
		}
	})
	t.Run("kill -9 of coracled", func(t *testing.T) {
		kill9(t, "coracled\x00run", "CORACLE_HOME="+u.home)
		u.ok(t, "coracle", "start")
		intact(t)
	})
	t.Run("kill -9 of QEMU", func(t *testing.T) {
		kill9(t, "qemu-system", u.home)
		eventually(t, 10*time.Second, func() error {
			if got := u.status(t, "default").State; got == "running" {
				return fmt.Errorf("state is still %s", got)
			}
			return nil
		})
		u.ok(t, "coracle", "start")
		intact(t)
	})
	t.Run("kill -9 of both while writing", func(t *testing.T) {
		const n = 20
		u.docker(t, "run", "-d", "--name", "busy", "toolbox", "zeros", "100000000")
		for i := range n {
			u.docker(t, "run", "--rm", "-v", "kept:/data", "toolbox", "write", fmt.Sprintf("/data/%d", i), fmt.Sprint(i))
			if i == n/2 {
				kill9(t, "coracled\x00run", "CORACLE_HOME="+u.home)
				u.ok(t, "coracle", "start")
			}
		}
		kill9(t, "qemu-system", u.home)
		u.ok(t, "coracle", "start")
		for i := range n {
			if got := u.docker(t, "run", "--rm", "-v", "kept:/data", "toolbox", "cat", fmt.Sprintf("/data/%d", i)); got != fmt.Sprint(i) {
				t.Errorf("record %d, which was synced, holds %q", i, got)
			}
		}
		intact(t)
	})
	t.Run("grow the disk", func(t *testing.T) {
		u.ok(t, "coracle", "stop")
		u.fails(t, 1, []string{"shrink"}, "coracle", "start", "--disk", "4GiB")
		u.ok(t, "coracle", "start", "--disk", "12GiB")
		var kb int64
		out := u.ok(t, "coracle", "shell", "--", "df", "-k", "/data")
		if _, err := fmt.Sscan(strings.Fields(out)[8], &kb); err != nil || kb < 11<<20 {
			t.Errorf("after growing to 12 GiB, df says:\n%s", out)
		}
		intact(t)
	})
	t.Run("delete", func(t *testing.T) {
		u.fails(t, 1, []string{"is running", "coracle stop"}, "coracle", "delete", "--yes", "default")
		u.ok(t, "coracle", "stop")
		u.fails(t, 1, []string{"--yes"}, "coracle", "delete", "default")
		u.ok(t, "coracle", "delete", "--yes", "default")
		if _, err := os.Stat(filepath.Join(u.home, "machines/default")); !os.IsNotExist(err) {
			t.Errorf("the machine's directory after delete: %v", err)
		}
		if got := u.docker(t, "context", "ls", "-q"); got != "default" {
			t.Errorf("contexts after delete: %q", got)
		}
	})
}

// TestTwoMachines runs two at once, one of which is started by two people at the same time.
func TestTwoMachines(t *testing.T) {
	needVM(t)
	u := newUser(t)
	var wg sync.WaitGroup
	for _, name := range []string{"left", "right", "right"} {
		wg.Go(func() {
			if r := u.run(t.Context(), nil, "coracle", "start", "--memory", "1GiB", "--context=false", name); r.code != 0 {
				t.Errorf("start %s: %s", name, r)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	if got := processes(t, "qemu-system", u.home); len(got) != 2 {
		t.Fatalf("hypervisors: %v, want two", got)
	}
	on := func(name string, args ...string) string {
		t.Helper()
		return u.ok(t, "docker", append([]string{"-H", "unix://" + u.status(t, name).DockerSocket}, args...)...)
	}
	on("left", "volume", "create", "mine")
	if got := on("right", "volume", "ls", "-q"); got != "" {
		t.Errorf("the right machine sees the left one's volumes: %s", got)
	}
	if l, r := on("left", "info", "-f", "{{.ID}}"), on("right", "info", "-f", "{{.ID}}"); l == r {
		t.Errorf("both engines are %s", l)
	}
	if got := u.docker(t, "context", "ls", "-q"); got != "default" {
		t.Errorf("--context=false made contexts: %q", got)
	}
	// The death of one touches no other.
	kill9(t, "qemu-system", filepath.Join(u.home, "machines/left"))
	on("right", "version")
	if got := u.ok(t, "coracle", "list"); !strings.Contains(got, "left") || !strings.Contains(got, "right") {
		t.Errorf("list: %s", got)
	}
}

// TestForeignArchitecture boots the arm64 image once, emulated, to an answered ping and a container.
func TestForeignArchitecture(t *testing.T) {
	needVM(t)
	if runtime.GOARCH == "arm64" {
		t.Skip("arm64 is this machine's own architecture: TestEngine covers it")
	}
	image := filepath.Join(root, "build/image/arm64")
	if _, err := os.Stat(filepath.Join(image, "manifest.json")); err != nil {
		t.Fatalf("%v: run `make images-arm64` first", err)
	}
	u := newUser(t)
	u.ok(t, "coracle", "start", "--arch", "arm64", "--memory", "1GiB", "arm")
	if got := u.docker(t, "version", "-f", "{{.Server.Arch}}"); got != "arm64" {
		t.Errorf("the engine runs on %s", got)
	}
	dir := t.TempDir()
	goBuild(t, "arm64", "./e2e/toolbox", filepath.Join(dir, "toolbox"))
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch\nCOPY toolbox /toolbox\nENTRYPOINT [\"/toolbox\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	u.docker(t, "build", "-q", "-t", "toolbox", dir)
	if got := u.docker(t, "run", "--rm", "toolbox", "echo", "from", "arm64"); got != "from arm64" {
		t.Errorf("a container on arm64 printed %q", got)
	}
}
