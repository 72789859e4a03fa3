//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience bounds one command in a story. Under emulation on a busy machine everything takes long; nothing takes this long.
const patience = 3 * time.Minute

// root is the top of the checkout: tests run in their package's directory.
var root = func() string {
	dir, err := filepath.Abs("..")
	if err != nil {
		panic(err)
	}
	return dir
}()

// user is one person on one computer: a home for machines and a docker configuration of their own.
type user struct {
	home  string // of machines
	files string // the user's own home directory, which a machine shares if not told otherwise
	env   []string
}

// needVM skips a story that boots a machine, unless machines are asked for.
func needVM(tb testing.TB) {
	tb.Helper()
	if os.Getenv("CORACLE_VM") != "1" {
		tb.Skip("boots a virtual machine: run `make all`, then `make vm`")
	}
	for _, p := range []string{"build/bin/coracle", "build/bin/coracled", "build/libexec/coracle/docker", "build/image/" + runtime.GOARCH + "/manifest.json"} {
		if _, err := os.Stat(filepath.Join(root, p)); err != nil {
			tb.Fatalf("%v: run `make all` first", err)
		}
	}
}

// newUser makes a user. Its directories have short names, since sockets lie beneath them.
func newUser(tb testing.TB) *user {
	tb.Helper()
	home, err := os.MkdirTemp("/tmp", "cr")
	if err != nil {
		tb.Fatal(err)
	}
	u := &user{home: filepath.Join(home, "h"), files: filepath.Join(home, "files")}
	if err := os.Mkdir(u.files, 0o755); err != nil {
		tb.Fatal(err)
	}
	u.env = append(os.Environ(), "HOME="+u.files, "SSH_AUTH_SOCK="+u.agent(), "CORACLE_HOME="+u.home, "DOCKER_CONFIG="+filepath.Join(home, "docker"), "DOCKER_HOST=", "DOCKER_CONTEXT=", "NO_COLOR=1")
	tb.Cleanup(func() {
		names, _ := filepath.Glob(filepath.Join(u.home, "machines", "*"))
		for _, dir := range names {
			out := u.run(context.Background(), nil, "coracle", "stop", "--force", filepath.Base(dir))
			if tb.Failed() {
				tb.Logf("stop %s: %s", filepath.Base(dir), out)
				for _, log := range []string{"coracled.log", "console.log"} {
					tb.Logf("%s ends with:\n%s", log, tail(filepath.Join(dir, log), 6000))
				}
			}
		}
		os.RemoveAll(home)
	})
	return u
}

// agent is where the user's ssh agent would listen.
func (u *user) agent() string { return filepath.Join(filepath.Dir(u.home), "agent") }

func tail(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-n):])
}

// result is what a command printed and how it ended.
type result struct {
	stdout, stderr string
	code           int // -1 where it did not exit by itself
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
}

// command makes one of our programs, or the docker CLI that comes with it, ready to run as u.
func (u *user) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	path := filepath.Join(root, "build/bin", name)
	if name == "docker" {
		path = filepath.Join(root, "build/libexec/coracle/docker")
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = u.env
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (u *user) run(ctx context.Context, stdin []byte, name string, args ...string) result {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := u.command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	r := result{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		r.stderr += "\n" + err.Error()
		r.code = -1
	}
	if ctx.Err() != nil {
		r.stderr += "\nended after " + patience.String()
		r.code = -1
	}
	return r
}

// ok runs a command that must succeed and returns its standard output without the space around it.
func (u *user) ok(tb testing.TB, name string, args ...string) string {
	tb.Helper()
	return u.okInput(tb, nil, name, args...)
}

func (u *user) okInput(tb testing.TB, stdin []byte, name string, args ...string) string {
	tb.Helper()
	r := u.run(tb.Context(), stdin, name, args...)
	if r.code != 0 {
		tb.Fatalf("%s %s: %s", name, strings.Join(args, " "), r)
	}
	return strings.TrimSpace(r.stdout)
}

// docker runs the docker CLI in the current context, which must succeed.
func (u *user) docker(tb testing.TB, args ...string) string {
	tb.Helper()
	return u.ok(tb, "docker", args...)
}

// fails runs a command that must fail with code and say each of the words on standard error.
func (u *user) fails(tb testing.TB, code int, words []string, name string, args ...string) result {
	tb.Helper()
	r := u.run(tb.Context(), nil, name, args...)
	if r.code != code {
		tb.Fatalf("%s %s: want exit %d, got %s", name, strings.Join(args, " "), code, r)
	}
	for _, w := range words {
		if !strings.Contains(r.stderr, w) {
			tb.Errorf("%s %s: want %q on standard error, got %s", name, strings.Join(args, " "), w, r)
		}
	}
	return r
}

// toolboxImage builds the image "toolbox" from scratch.
func (u *user) toolboxImage(tb testing.TB) {
	tb.Helper()
	u.docker(tb, "build", "-q", "-t", "toolbox", toolboxContext(tb, "FROM scratch\nCOPY toolbox /toolbox\nENTRYPOINT [\"/toolbox\"]\n"))
}

// toolboxContext makes a build context with the toolbox program in it.
func toolboxContext(tb testing.TB, dockerfile string) string {
	tb.Helper()
	dir := tb.TempDir()
	goBuild(tb, runtime.GOARCH, "./e2e/toolbox", filepath.Join(dir, "toolbox"))
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		tb.Fatal(err)
	}
	return dir
}

func goBuild(tb testing.TB, arch, pkg, out string) {
	tb.Helper()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if b, err := cmd.CombinedOutput(); err != nil {
		tb.Fatalf("build %s: %v\n%s", pkg, err, b)
	}
}

// eventually tries f until it succeeds, for at most limit.
func eventually(tb testing.TB, limit time.Duration, f func() error) {
	tb.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("still after %s: %v", limit, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// processes lists the processes whose command line and environment hold all of the words.
func processes(tb testing.TB, words ...string) []int {
	tb.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		tb.Fatal(err)
	}
	var pids []int
next:
	for _, f := range files {
		line, err := os.ReadFile(f)
		if err != nil || len(line) == 0 {
			continue // ended meanwhile
		}
		environ, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "environ"))
		line = append(line, environ...)
		for _, w := range words {
			if !bytes.Contains(line, []byte(w)) {
				continue next
			}
		}
		var pid int
		if _, err := fmt.Sscanf(f, "/proc/%d/cmdline", &pid); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// kill9 kills the one process that holds all of the words.
func kill9(tb testing.TB, words ...string) {
	tb.Helper()
	pids := processes(tb, words...)
	if len(pids) != 1 {
		tb.Fatalf("processes with %q: got %v, want one", words, pids)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		tb.Fatal(err)
	}
}
