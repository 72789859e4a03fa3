//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// TestEngine walks the docker CLI through the forwarded socket of one machine, as issue 3 lists it.
func TestEngine(t *testing.T) {
	needVM(t)
	u := newUser(t)
	out := u.run(t.Context(), nil, "coracle", "start", "--trace")
	if out.code != 0 {
		t.Fatalf("coracle start: %s", out)
	}
	t.Logf("coracle start --trace:\n%s%s", out.stdout, out.stderr)
	u.toolboxImage(t)

	for _, story := range []struct {
		name string
		f    func(*testing.T, *user)
	}{
		{"context", contextIsSelected},
		{"version and info", versionAndInfo},
		{"build", buildStages},
		{"run", runCodes},
		{"run with a terminal", runTTY},
		{"a gibibyte through standard input", pipeGibibyte},
		{"slow reader", slowReader},
		{"exec", execInto},
		{"attach and detach", attachDetach},
		{"logs", followLogs},
		{"cp", copyBothWays},
		{"save, load, commit", saveLoadCommit},
		{"events, stats, top, wait", watchers},
		{"restart policies and health checks", restartAndHealth},
		{"networks", networksByName},
		{"compose", composeUp},
		{"shell", shellIn},
		{"containers are strangers to the agent", strangers},
		{"prune", systemPrune}, // last: it removes what is unused
	} {
		t.Run(story.name, func(t *testing.T) { story.f(t, u) })
	}
}

func contextIsSelected(t *testing.T, u *user) {
	if got := u.docker(t, "context", "show"); got != "coracle" {
		t.Errorf("docker context show: got %q, want coracle", got)
	}
	got := u.docker(t, "context", "inspect", "-f", "{{.Endpoints.docker.Host}}")
	if want := "unix://" + filepath.Join(u.home, "machines/default/docker.sock"); got != want {
		t.Errorf("the context leads to %s: want %s", got, want)
	}
}

func versionAndInfo(t *testing.T, u *user) {
	var v struct {
		Client, Server struct{ Version, Os, Arch string }
	}
	if err := json.Unmarshal([]byte(u.docker(t, "version", "-f", "json")), &v); err != nil {
		t.Fatal(err)
	}
	for side, version := range map[string]string{"client": v.Client.Version, "server": v.Server.Version} {
		if version == "" || version == "library-import" || version == "unknown-version" {
			t.Errorf("docker version: the %s is %q, which is not its true version", side, version)
		}
	}
	if v.Server.Os != "linux" {
		t.Errorf("docker version: the server's system is %q", v.Server.Os)
	}
	info := u.docker(t, "info")
	for _, want := range []string{"Name: coracle", "Cgroup Version: 2", "Docker Root Dir: /var/lib/docker", "runc"} {
		if !strings.Contains(info, want) {
			t.Errorf("docker info does not say %q:\n%s", want, info)
		}
	}
	if strings.Contains(info, "WARNING") {
		t.Errorf("docker info warns:\n%s", info)
	}
}

func buildStages(t *testing.T, u *user) {
	dir := toolboxContext(t, `FROM scratch AS first
COPY toolbox /toolbox
RUN --mount=type=secret,id=token ["/toolbox", "sha256"]
RUN --mount=type=secret,id=token ["/toolbox", "exists", "/run/secrets/token"]
RUN ["/toolbox", "write", "/made", "in", "the", "first", "stage"]
FROM scratch
COPY --from=first /toolbox /made /
ENTRYPOINT ["/toolbox"]
CMD ["cat", "/made"]
`)
	secret := filepath.Join(dir, "token.txt")
	if err := os.WriteFile(secret, []byte("hush"), 0o600); err != nil {
		t.Fatal(err)
	}
	u.docker(t, "build", "--secret", "id=token,src="+secret, "-t", "staged", dir)
	if got := u.docker(t, "run", "--rm", "staged"); got != "in the first stage" {
		t.Errorf("the built image printed %q", got)
	}
	u.fails(t, 1, nil, "docker", "run", "--rm", "staged", "exists", "/run/secrets/token")
	u.fails(t, 1, []string{"no-such-file"}, "docker", "build", toolboxContext(t, "FROM scratch\nCOPY no-such-file /\n"))
}

func runCodes(t *testing.T, u *user) {
	u.fails(t, 42, []string{"leaving with 42"}, "docker", "run", "--rm", "toolbox", "exit", "42")
	u.fails(t, 127, []string{"no-such-program"}, "docker", "run", "--rm", "--entrypoint", "/no-such-program", "toolbox")
	if got := u.okInput(t, []byte("through standard input"), "docker", "run", "--rm", "-i", "toolbox", "cat"); got != "through standard input" {
		t.Errorf("run -i … cat: got %q", got)
	}
	if got := u.docker(t, "run", "--rm", "toolbox", "tty"); got != "not a terminal" {
		t.Errorf("run without -t: %s", got)
	}
}

// terminal starts the docker CLI on a terminal of 33 rows and 99 columns.
func terminal(t *testing.T, u *user, args ...string) (*exec.Cmd, *os.File) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	cmd := u.command(ctx, "docker", args...)
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 99})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return cmd, f
}

// typeIn types text once the docker CLI has taken the terminal, as a person would: what comes earlier is for the shell.
func typeIn(t *testing.T, f *os.File, text string) {
	t.Helper()
	eventually(t, patience, func() error {
		mode, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		if err != nil {
			return err
		}
		if mode.Lflag&unix.ICANON != 0 {
			return errors.New("the terminal is not raw")
		}
		return nil
	})
	if _, err := io.WriteString(f, text); err != nil {
		t.Fatal(err)
	}
}

// expect reads from a terminal until text was seen.
func expect(t *testing.T, f *os.File, text string) string {
	t.Helper()
	var seen bytes.Buffer
	_ = f.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 4096)
	for !strings.Contains(seen.String(), text) {
		n, err := f.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("terminal ended with %v before %q: %q", err, text, seen.String())
		}
	}
	return seen.String()
}

func runTTY(t *testing.T, u *user) {
	cmd, f := terminal(t, u, "run", "--rm", "-it", "toolbox", "cat")
	typeIn(t, f, "typed\r\x04")
	expect(t, f, "typed\r\ntyped\r\n") // its echo, then cat's copy
	if err := cmd.Wait(); err != nil {
		t.Errorf("run -it … cat after ^D: %v", err)
	}
	cmd, f = terminal(t, u, "run", "--rm", "-it", "toolbox", "tty")
	expect(t, f, "terminal of 33 rows and 99 columns")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func pipeGibibyte(t *testing.T, u *user) {
	const size = 1 << 30
	r, w := io.Pipe()
	want := sha256.New()
	go func() {
		block := make([]byte, 1<<20)
		for i := range block {
			block[i] = byte(i * 7 >> 3)
		}
		for i := range size / len(block) {
			block[0], block[len(block)-1] = byte(i), byte(i>>8)
			want.Write(block)
			if _, err := w.Write(block); err != nil {
				return
			}
		}
		w.Close()
	}()
	cmd := u.command(t.Context(), "docker", "run", "--rm", "-i", "toolbox", "sha256")
	cmd.Stdin = r
	began := time.Now()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run -i … sha256: %v", err)
	}
	if got := fmt.Sprintf("%x %d\n", want.Sum(nil), size); string(out) != got {
		t.Errorf("digest of what arrived: %q, of what was sent: %q", out, got)
	}
	t.Logf("1 GiB took %s", time.Since(began).Round(time.Millisecond))
}

// slowReader is docker/for-mac#7632: a reader slower than the container must not lose the end.
func slowReader(t *testing.T, u *user) {
	const size = 20 << 20
	cmd := u.command(t.Context(), "docker", "run", "--rm", "toolbox", "zeros", fmt.Sprint(size))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var total int64
	for {
		n, err := io.CopyN(io.Discard, out, 4<<20)
		total += n
		if err != nil {
			break
		}
		time.Sleep(300 * time.Millisecond)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if total != size {
		t.Errorf("a slow reader got %d of %d bytes", total, size)
	}
}

func execInto(t *testing.T, u *user) {
	u.docker(t, "run", "-d", "--name", "held", "-e", "COLOUR=blue", "toolbox", "hold")
	defer u.docker(t, "rm", "-f", "held")
	if got := u.docker(t, "exec", "held", "/toolbox", "env", "COLOUR"); got != "blue" {
		t.Errorf("exec … env: %q", got)
	}
	u.fails(t, 9, []string{"leaving with 9"}, "docker", "exec", "held", "/toolbox", "exit", "9")
	if got := u.okInput(t, []byte("abc"), "docker", "exec", "-i", "held", "/toolbox", "sha256"); !strings.HasPrefix(got, "ba7816bf") {
		t.Errorf("exec -i … sha256 of abc: %q", got)
	}
	cmd, f := terminal(t, u, "exec", "-it", "held", "/toolbox", "tty")
	expect(t, f, "terminal of 33 rows and 99 columns")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func attachDetach(t *testing.T, u *user) {
	cmd, f := terminal(t, u, "run", "--name", "seat", "-it", "toolbox", "cat")
	typeIn(t, f, "first\r")
	expect(t, f, "first\r\nfirst\r\n")
	typeIn(t, f, "\x10\x11") // ctrl-p ctrl-q
	if err := cmd.Wait(); err != nil {
		t.Errorf("detach from run: %v", err)
	}
	defer u.docker(t, "rm", "-f", "seat")
	if got := u.docker(t, "inspect", "-f", "{{.State.Running}}", "seat"); got != "true" {
		t.Fatalf("after the detach keys, running is %s", got)
	}
	cmd, f = terminal(t, u, "attach", "--detach-keys", "ctrl-x", "seat")
	typeIn(t, f, "second\r")
	expect(t, f, "second\r\nsecond\r\n")
	typeIn(t, f, "\x18")
	if err := cmd.Wait(); err != nil && !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("detach from attach: %v", err)
	}
	if got := u.docker(t, "inspect", "-f", "{{.State.Running}}", "seat"); got != "true" {
		t.Errorf("after the second detach, running is %s", got)
	}
}

func followLogs(t *testing.T, u *user) {
	id := u.docker(t, "run", "-d", "toolbox", "ticks", "150")
	defer u.docker(t, "rm", "-f", id)
	lines := strings.Split(u.docker(t, "logs", "-f", id), "\n")
	if len(lines) != 150 || lines[149] != "tick 149" {
		t.Errorf("logs -f gave %d lines and ended with %q", len(lines), lines[len(lines)-1])
	}
	if got := u.docker(t, "logs", "--tail", "1", id); got != "tick 149" {
		t.Errorf("logs --tail 1: %q", got)
	}
}

func copyBothWays(t *testing.T, u *user) {
	u.docker(t, "create", "--name", "box", "toolbox", "cat", "/in")
	defer u.docker(t, "rm", "-f", "box")
	in, out := filepath.Join(t.TempDir(), "in"), filepath.Join(t.TempDir(), "out")
	data := bytes.Repeat([]byte("there and back again\n"), 1<<19) // 11 MB
	if err := os.WriteFile(in, data, 0o644); err != nil {
		t.Fatal(err)
	}
	u.docker(t, "cp", in, "box:/in")
	u.docker(t, "cp", "box:/in", out)
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, data) {
		t.Errorf("after cp there and back: %d bytes, %v: want %d equal ones", len(got), err, len(data))
	}
}

func saveLoadCommit(t *testing.T, u *user) {
	tar := filepath.Join(t.TempDir(), "toolbox.tar")
	u.docker(t, "tag", "toolbox", "copy:1")
	u.docker(t, "save", "-o", tar, "copy:1")
	u.docker(t, "rmi", "copy:1")
	if got := u.docker(t, "load", "-i", tar); !strings.Contains(got, "copy:1") {
		t.Errorf("load: %s", got)
	}
	if got := u.docker(t, "run", "--rm", "copy:1", "echo", "loaded"); got != "loaded" {
		t.Errorf("run of the loaded image: %q", got)
	}
	u.docker(t, "run", "--name", "author", "toolbox", "write", "/book", "once upon a time")
	defer u.docker(t, "rm", "author")
	u.docker(t, "commit", "-c", `CMD ["cat", "/book"]`, "author", "book:1")
	if got := u.docker(t, "run", "--rm", "book:1"); got != "once upon a time" {
		t.Errorf("run of the committed image: %q", got)
	}
}

func watchers(t *testing.T, u *user) {
	events := u.command(t.Context(), "docker", "events", "--filter", "container=seen", "--format", "{{.Action}}")
	out, err := events.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = events.Process.Kill(); _ = events.Wait() }()

	since := fmt.Sprint(time.Now().Unix() - 5)
	u.docker(t, "run", "-d", "--name", "seen", "toolbox", "hold")
	if got := u.docker(t, "top", "seen"); !strings.Contains(got, "/toolbox hold") {
		t.Errorf("top: %s", got)
	}
	if got := u.docker(t, "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", "seen"); !strings.HasPrefix(got, "seen ") || strings.Contains(got, "0B / 0B") {
		t.Errorf("stats: %s", got)
	}
	wait := u.command(t.Context(), "docker", "wait", "seen")
	var code bytes.Buffer
	wait.Stdout = &code
	if err := wait.Start(); err != nil {
		t.Fatal(err)
	}
	u.docker(t, "kill", "seen")
	if err := wait.Wait(); err != nil || strings.TrimSpace(code.String()) != "137" {
		t.Errorf("wait: %v, printed %q: want 137", err, code.String())
	}
	u.docker(t, "rm", "seen")
	buf := make([]byte, 4096)
	var seen string
	for !strings.Contains(seen, "destroy") {
		n, err := out.Read(buf)
		if err != nil {
			break
		}
		seen += string(buf[:n])
	}
	got := u.docker(t, "events", "--since", since, "--until", fmt.Sprint(time.Now().Unix()+1), "--filter", "container=seen", "--format", "{{.Action}}")
	for _, action := range []string{"create", "start", "kill", "die", "destroy"} {
		if !strings.Contains(seen, action) {
			t.Errorf("live events lack %s: %q", action, seen)
		}
		if !strings.Contains(got, action) {
			t.Errorf("past events lack %s: %q", action, got)
		}
	}
}

func restartAndHealth(t *testing.T, u *user) {
	u.docker(t, "run", "-d", "--name", "again", "--restart", "on-failure:2", "toolbox", "exit", "3")
	defer u.docker(t, "rm", "-f", "again")
	eventually(t, time.Minute, func() error {
		if got := u.docker(t, "inspect", "-f", "{{.RestartCount}} {{.State.Status}}", "again"); got != "2 exited" {
			return fmt.Errorf("restarts and state: %s", got)
		}
		return nil
	})
	u.docker(t, "run", "-d", "--name", "fit", "--health-cmd", "/toolbox exists /toolbox", "--health-interval", "1s", "toolbox", "hold")
	defer u.docker(t, "rm", "-f", "fit")
	// A shell-form check needs a shell, which scratch has not: it must turn unhealthy, and say why.
	eventually(t, time.Minute, func() error {
		if got := u.docker(t, "inspect", "-f", "{{.State.Health.Status}}", "fit"); got != "unhealthy" {
			return fmt.Errorf("health without a shell: %s", got)
		}
		return nil
	})
	dir := toolboxContext(t, "FROM scratch\nCOPY toolbox /\nHEALTHCHECK --interval=1s CMD [\"/toolbox\", \"exists\", \"/toolbox\"]\nENTRYPOINT [\"/toolbox\"]\n")
	u.docker(t, "build", "-q", "-t", "checked", dir)
	u.docker(t, "run", "-d", "--name", "well", "checked", "hold")
	defer u.docker(t, "rm", "-f", "well")
	eventually(t, time.Minute, func() error {
		if got := u.docker(t, "inspect", "-f", "{{.State.Health.Status}}", "well"); got != "healthy" {
			return fmt.Errorf("health: %s", got)
		}
		return nil
	})
}

func networksByName(t *testing.T, u *user) {
	u.docker(t, "network", "create", "pond")
	defer u.docker(t, "network", "rm", "pond")
	u.docker(t, "run", "-d", "--name", "frog", "--network", "pond", "toolbox", "serve", "80", "quack")
	defer u.docker(t, "rm", "-f", "frog")
	if got := u.docker(t, "run", "--rm", "--network", "pond", "toolbox", "get", "http://frog/"); got != "quack" {
		t.Errorf("one container asked another by name and got %q", got)
	}
	u.fails(t, 1, nil, "docker", "run", "--rm", "toolbox", "get", "http://frog/")
}

func composeUp(t *testing.T, u *user) {
	dir := t.TempDir()
	file := filepath.Join(dir, "compose.yaml")
	if err := os.WriteFile(file, []byte(`services:
  web:
    image: toolbox
    command: ["serve", "8080", "composed"]
  ask:
    image: toolbox
    command: ["get", "http://web:8080/"]
    depends_on: [web]
`), 0o644); err != nil {
		t.Fatal(err)
	}
	u.docker(t, "compose", "-f", file, "up", "-d", "--wait", "web")
	defer u.docker(t, "compose", "-f", file, "down", "-t", "1")
	if got := u.docker(t, "compose", "-f", file, "run", "--rm", "ask"); got != "composed" {
		t.Errorf("compose run: %q", got)
	}
}

func shellIn(t *testing.T, u *user) {
	if got := u.ok(t, "coracle", "shell", "--", "sh", "-c", "id -u; uname -s"); got != "0\nLinux" {
		t.Errorf("coracle shell -- …: %q", got)
	}
	u.fails(t, 7, nil, "coracle", "shell", "--", "sh", "-c", "exit 7")
	if got := u.okInput(t, []byte("abc"), "coracle", "shell", "--", "sha256sum"); !strings.HasPrefix(got, "ba7816bf") {
		t.Errorf("standard input of shell: %q", got)
	}
}

func systemPrune(t *testing.T, u *user) {
	u.docker(t, "run", "--name", "litter", "toolbox", "echo", "done")
	u.docker(t, "network", "create", "unused")
	out := u.docker(t, "system", "prune", "-af")
	if !strings.Contains(out, "Total reclaimed space") || strings.Contains(u.docker(t, "ps", "-aq"), "litter") {
		t.Errorf("prune: %s", out)
	}
	if got := u.docker(t, "images", "-q"); got != "" {
		t.Errorf("images after prune -a: %s", got)
	}
}
