//go:build linux

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestShares tells what a user meets who mounts directories of the host into containers.
func TestShares(t *testing.T) {
	needVM(t)
	u := newUser(t)
	u.put(t, ".ssh/id_ed25519", "a key")
	u.put(t, "project/hello.txt", "hello from the host")
	u.ok(t, "coracle", "start")
	u.toolboxImage(t)
	for _, story := range []struct {
		name string
		f    func(*testing.T, *user)
	}{
		{"bind mount by every spelling", bindSpellings},
		{"whose files", whoseFiles},
		{"what few programs do", specialFiles},
		{"secrets are left out", secretsLeftOut},
		{"not shared", notShared},
		{"docker socket", dockerSocket},
		{"random operations from both sides", exerciseBoth},
		{"neither side is stale", neitherStale},
		{"file events", fileEvents},
		{"100,000 files in one directory", manyFiles},
		{"shares change while the machine runs", sharesChange},
		{"fio verifies", fioVerifies},
		{"git, Go and npm on a share", buildsOnShare},
		{"attack: escapes from a share", shareEscapes},
	} {
		t.Run(story.name, func(t *testing.T) { story.f(t, u) })
	}
}

// put writes a file beneath the user's home directory.
func (u *user) put(tb testing.TB, name, content string) string {
	tb.Helper()
	path := filepath.Join(u.files, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		tb.Fatal(err)
	}
	return path
}

// dir makes a directory of the user's.
func (u *user) dir(tb testing.TB, name string) string {
	tb.Helper()
	path := filepath.Join(u.files, name)
	if err := os.MkdirAll(path, 0o755); err != nil {
		tb.Fatal(err)
	}
	return path
}

func bindSpellings(t *testing.T, u *user) {
	dir := filepath.Join(u.files, "project")
	const hello = "hello from the host"
	for _, flags := range [][]string{
		{"-v", dir + ":/src"}, {"-v", dir + ":/src:ro"}, {"--mount", "type=bind,src=" + dir + ",dst=/src"},
		{"--mount", "type=volume,dst=/src,volume-opt=type=none,volume-opt=o=bind,volume-opt=device=" + dir},
	} {
		args := append(append([]string{"run", "--rm"}, flags...), "toolbox", "cat", "/src/hello.txt")
		if got := u.docker(t, args...); got != hello {
			t.Errorf("%v: got %q", flags, got)
		}
	}
	u.docker(t, "volume", "create", "-d", "local", "-o", "type=none", "-o", "o=bind", "-o", "device="+dir, "bound")
	if got := u.docker(t, "run", "--rm", "-v", "bound:/src", "toolbox", "cat", "/src/hello.txt"); got != hello {
		t.Errorf("a volume that binds: got %q", got)
	}
	u.docker(t, "volume", "rm", "bound")
	u.put(t, "project/compose.yaml", "services:\n  one:\n    image: toolbox\n    command: [cat, /src/hello.txt]\n    volumes: [\".:/src\"]\n")
	if got := u.docker(t, "compose", "--progress", "quiet", "-f", filepath.Join(dir, "compose.yaml"), "run", "--rm", "one"); got != hello {
		t.Errorf("compose: got %q", got)
	}
	u.docker(t, "compose", "--progress", "quiet", "-f", filepath.Join(dir, "compose.yaml"), "down")
	u.docker(t, "run", "--rm", "-v", dir+":/src", "toolbox", "write", "/src/back.txt", "hello back")
	if b, err := os.ReadFile(filepath.Join(dir, "back.txt")); err != nil || string(b) != "hello back" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	u.fails(t, 1, []string{"read-only"}, "docker", "run", "--rm", "-v", dir+":/src:ro", "toolbox", "write", "/src/no.txt", "x")
	// As with Docker everywhere, -v makes a directory that is not there, and --mount does not.
	made := filepath.Join(u.files, "made/by/docker")
	u.docker(t, "run", "--rm", "-v", made+":/src", "toolbox", "write", "/src/x", "x")
	if _, err := os.Stat(filepath.Join(made, "x")); err != nil {
		t.Error(err)
	}
	u.fails(t, 125, []string{"does not exist"}, "docker", "run", "--rm", "--mount", "type=bind,src="+u.files+"/nowhere,dst=/src", "toolbox", "echo")
}

// party is a container that does what it is asked, one line at a time.
type party struct {
	in  io.Writer
	out *bufio.Scanner
	end func()
}

// ask starts a container that has the user's directory dir at /src.
func (u *user) ask(tb testing.TB, dir string, flags ...string) *party {
	tb.Helper()
	args := append(append([]string{"run", "--rm", "-i", "-v", dir + ":/src"}, flags...), "toolbox", "ask")
	cmd := u.command(tb.Context(), "docker", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<22)
	return &party{in, lines, func() { in.Close(); cmd.Wait() }}
}

func (p *party) do(tb testing.TB, format string, args ...any) string {
	tb.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		tb.Fatal(err)
	}
	if !p.out.Scan() {
		tb.Fatalf("the container says no more: %v", p.out.Err())
	}
	return p.out.Text()
}

// whoseFiles: on the host all belongs to the user, in the container to whom it says.
func whoseFiles(t *testing.T, u *user) {
	dir := u.dir(t, "whose")
	p := u.ask(t, dir, "--user", "999:999")
	defer p.end()
	for _, step := range []struct{ do, want string }{
		{"write /src/mine x", "ok"}, {"stat /src/mine", "-rw-r--r-- 1 999:999"},
		{"chmod 4755 /src/mine", "ok"}, {"stat /src/mine", "urwxr-xr-x 1 999:999"},
		{"chmod 0 /src/mine", "ok"}, {"stat /src/mine", "---------- 1 999:999"},
	} {
		if got := p.do(t, "%s", step.do); got != step.want {
			t.Errorf("%s: got %q, want %q", step.do, got, step.want)
		}
	}
	r := u.ask(t, dir)
	defer r.end()
	for _, step := range []struct{ do, want string }{
		{"chown 70 /src/mine", "ok"}, {"stat /src/mine", "---------- 1 70:70"}, {"chmod 777 /src/mine", "ok"},
		{"write /src/root x", "ok"}, {"stat /src/root", "-rw-r--r-- 1 0:0"},
		{"mknod /src/sda", "error EPERM"},
	} {
		if got := r.do(t, "%s", step.do); got != step.want {
			t.Errorf("%s: got %q, want %q", step.do, got, step.want)
		}
	}
	for _, name := range []string{"mine", "root"} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if owner(st) != os.Getuid() || st.Mode()&(os.ModeSetuid|os.ModeSetgid|0o022) != 0 || st.Mode()&0o600 != 0o600 {
			t.Errorf("%s on the host: %s, owner %d", name, st.Mode(), owner(st))
		}
	}
}

func specialFiles(t *testing.T, u *user) {
	dir := u.dir(t, "few")
	if got := u.docker(t, "run", "--rm", "-v", dir+":/src", "toolbox", "files", "/src"); got != "ok" {
		t.Errorf("got %q", got)
	}
	// Locks hold between containers, to the end of who has them.
	u.put(t, "few/lock", "")
	one, two := u.ask(t, dir), u.ask(t, dir)
	defer two.end()
	if a, b := one.do(t, "lock /src/lock"), two.do(t, "lock /src/lock"); a != "ok" || b != "error EAGAIN" {
		t.Errorf("two containers lock a file: %s, %s", a, b)
	}
	one.end()
	if got := two.do(t, "lock /src/lock"); got != "ok" {
		t.Errorf("after the first has ended: %s", got)
	}
}

func secretsLeftOut(t *testing.T, u *user) {
	p := u.ask(t, u.files)
	defer p.end()
	if got := p.do(t, "list /src"); strings.Contains(got, ".ssh") {
		t.Errorf("the home directory shows %s", got)
	}
	for _, do := range []string{"read /src/.ssh/id_ed25519", "write /src/.ssh x", "rm /src/.ssh", "mv /src/project /src/.ssh"} {
		if got := p.do(t, "%s", do); strings.Contains(got, "a key") || do[:2] != "rm" && !strings.HasPrefix(got, "error") {
			t.Errorf("%s: %s", do, got)
		}
	}
	if b, err := os.ReadFile(filepath.Join(u.files, ".ssh/id_ed25519")); err != nil || string(b) != "a key" {
		t.Errorf("on the host: %q, %v", b, err)
	}
	u.fails(t, 125, []string{".ssh", "coracle config"}, "docker", "run", "--rm", "-v", u.files+"/.ssh:/keys", "toolbox", "echo")
}

// notShared: every way to name a directory that is not shared fails alike, and makes nothing.
func notShared(t *testing.T, u *user) {
	dir := t.TempDir()
	words := []string{dir, "coracle config add shares"}
	u.put(t, "unshared/compose.yaml", "services:\n  one:\n    image: toolbox\n    command: [echo]\n    volumes: [\""+dir+":/src\"]\n")
	for name, args := range map[string][]string{
		"-v":      {"run", "--rm", "-v", dir + ":/src", "toolbox", "echo"},
		"--mount": {"run", "--rm", "--mount", "type=bind,src=" + dir + ",dst=/src", "toolbox", "echo"},
		"volume":  {"volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device=" + dir, "nothing"},
		"mounted volume": {"run", "--rm", "--mount", "type=volume,dst=/src,volume-opt=type=none,volume-opt=o=bind,volume-opt=device=" + dir,
			"toolbox", "echo"},
		"compose": {"compose", "--progress", "quiet", "-f", u.files + "/unshared/compose.yaml", "up"},
	} {
		r := u.run(t.Context(), nil, "docker", args...)
		for _, w := range words {
			if r.code == 0 || !strings.Contains(r.stderr, w) {
				t.Errorf("%s: want an error that says %q, got %s", name, w, r)
			}
		}
	}
	if got := u.docker(t, "volume", "ls", "-q", "-f", "name=nothing"); got != "" {
		t.Errorf("a volume was made: %s", got)
	}
	u.docker(t, "swarm", "init", "--advertise-addr", "127.0.0.1")
	defer u.docker(t, "swarm", "leave", "--force")
	r := u.run(t.Context(), nil, "docker", "service", "create", "-q", "--detach", "--mount", "type=bind,src="+dir+",dst=/src", "toolbox", "hold")
	if r.code == 0 || !strings.Contains(r.stderr, dir) || !strings.Contains(r.stderr, "coracle config add shares") {
		t.Errorf("a service: %s", r)
	}
}

func dockerSocket(t *testing.T, u *user) {
	for _, path := range []string{"/var/run/docker.sock", "/run/docker.sock"} {
		dir := t.TempDir()
		goBuild(t, "amd64", "./e2e/toolbox", filepath.Join(dir, "toolbox"))
		if got := u.docker(t, "run", "--rm", "-v", path+":/var/run/docker.sock", "toolbox", "unixget", "/var/run/docker.sock", "/_ping"); got != "OK" {
			t.Errorf("%s: %q", path, got)
		}
	}
}

// exerciseBoth has host and container work in the same directory at once, and each look at what the other left.
func exerciseBoth(t *testing.T, u *user) {
	dir := u.dir(t, "both")
	const count = "400"
	tool := filepath.Join(t.TempDir(), "toolbox")
	goBuild(t, "amd64", "./e2e/toolbox", tool)
	for _, seed := range []string{"1", "2"} {
		var byHost, byGuest string
		var wg sync.WaitGroup
		wg.Go(func() {
			out, err := exec.Command(tool, "exercise", filepath.Join(dir, "host"+seed), seed, count).CombinedOutput()
			if err != nil {
				t.Errorf("the host's operations: %v: %s", err, out)
			}
			byHost = strings.TrimSpace(string(out))
		})
		wg.Go(func() {
			r := u.run(t.Context(), nil, "docker", "run", "--rm", "-v", dir+":/src", "toolbox", "exercise", "/src/guest"+seed, seed+"0", count)
			if r.code != 0 {
				t.Errorf("the container's operations: %s", r)
			}
			byGuest = strings.TrimSpace(r.stdout)
		})
		wg.Wait()
		if t.Failed() {
			return
		}
		seen := u.docker(t, "run", "--rm", "-v", dir+":/src", "toolbox", "manifest", "/src/host"+seed)
		if diff := cmp.Diff(byHost, seen); diff != "" {
			t.Errorf("what the container sees of the host's work (-made +seen):\n%s", diff)
		}
		out, err := exec.Command(tool, "manifest", filepath.Join(dir, "guest"+seed)).Output()
		if err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(byGuest, strings.TrimSpace(string(out))); diff != "" {
			t.Errorf("what the host sees of the container's work (-made +seen):\n%s", diff)
		}
	}
}

// staleLimit is how long a container may see the past: 100 ms, and 250 ms where instructions are emulated.
const staleLimit = 250 * time.Millisecond

// neitherStale edits on one side, in every way that editors do, and looks from the other, whose caches are warm.
func neitherStale(t *testing.T, u *user) {
	dir := u.dir(t, "stale")
	p := u.ask(t, dir)
	defer p.end()
	file := filepath.Join(dir, "file")
	var worst time.Duration
	see := func(what, do, want string) {
		t.Helper()
		began := time.Now()
		for got := ""; ; {
			if got = p.do(t, "%s", do); got == want {
				break
			}
			if time.Since(began) > 5*time.Second {
				t.Fatalf("%s: the container still sees %q, want %q", what, got, want)
			}
		}
		took := time.Since(began)
		worst = max(worst, took)
		if took > staleLimit {
			t.Errorf("%s: seen after %v, want %v", what, took, staleLimit)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p.do(t, "list /src") // the container is up
	for i := range 10 {
		text := fmt.Sprintf("version-%04d", i) // always as long
		must(os.WriteFile(file, []byte(text), 0o644))
		see("written in place", "read /src/file", text)
		must(os.WriteFile(file+"~", []byte(text+"-moved"), 0o644))
		must(os.Rename(file+"~", file))
		see("moved over", "read /src/file", text+"-moved")
		see("attributes", "stat /src/file", "-rw-r--r-- 18 "+ownIDs())
		must(os.Remove(file))
		see("removed", "read /src/file", "error ENOENT")
		see("list", "list /src", "")
		must(os.MkdirAll(filepath.Join(dir, "a/b"), 0o755))
		must(os.WriteFile(filepath.Join(dir, "a/b/c"), []byte(text), 0o644))
		see("deep", "read /src/a/b/c", text)
		must(os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "z")))
		see("directory moved", "read /src/z/b/c", text)
		see("old name", "read /src/a/b/c", "error ENOENT")
		must(os.RemoveAll(filepath.Join(dir, "z")))
		see("tree removed", "list /src", "")
		// The other way round there is no cache: the host sees at once.
		p.do(t, "write /src/file %s-guest", text)
		if b, err := os.ReadFile(file); err != nil || string(b) != text+"-guest" {
			t.Errorf("the host sees %q, %v", b, err)
		}
	}
	t.Logf("worst staleness: %v", worst)
}

// fileEvents has a real watcher in a container, and every kind of change on the host.
func fileEvents(t *testing.T, u *user) {
	dir := u.dir(t, "watched")
	u.put(t, "watched/old", "old")
	u.put(t, "watched/sub/file", "x")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	cmd := u.command(ctx, "docker", "run", "--rm", "--init", "--name", "watcher", "-v", dir+":/src", "toolbox", "watch", "/src", "/src/sub")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			lines <- s.Text()
		}
	}()
	next := func(want string) time.Duration {
		t.Helper()
		began := time.Now()
		limit := time.NewTimer(10 * time.Second)
		defer limit.Stop()
		for seen := []string{}; ; {
			select {
			case line := <-lines:
				if line == want {
					return time.Since(began)
				}
				seen = append(seen, line)
			case <-limit.C:
				t.Fatalf("no %q within 10 s; seen: %q", want, seen)
			}
		}
	}
	next("watching")
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, step := range []struct {
		do   func() error
		want []string
	}{
		{func() error { return os.WriteFile(path("new"), nil, 0o644) }, []string{"CREATE src/new"}},
		{func() error { return os.WriteFile(path("new"), []byte("text"), 0o644) }, []string{"MODIFY src/new"}},
		{func() error { return os.WriteFile(path("old"), []byte("new"), 0o644) }, []string{"MODIFY src/old"}},
		{func() error { return os.Chmod(path("new"), 0o755) }, []string{"ATTRIB src/new"}},
		{func() error { return os.Rename(path("new"), path("newer")) }, []string{"MOVED_FROM src/new", "MOVED_TO src/newer"}},
		{func() error { return os.Rename(path("newer"), path("sub/newest")) }, []string{"MOVED_FROM src/newer", "MOVED_TO sub/newest"}},
		{func() error { return os.Mkdir(path("dir"), 0o755) }, []string{"CREATE src/dir"}},
		{func() error { return os.Remove(path("dir")) }, []string{"DELETE src/dir"}},
		{func() error { return os.Remove(path("sub/newest")) }, []string{"DELETE sub/newest"}},
		{func() error { return os.Symlink("old", path("link")) }, []string{"CREATE src/link"}},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		for _, want := range step.want {
			if took := next(want); took > staleLimit {
				t.Errorf("%s came after %v, want %v", want, took, staleLimit)
			} else {
				t.Logf("%s: %v", want, took)
			}
		}
	}
	u.docker(t, "rm", "-f", "watcher")
	cancel()
	cmd.Wait()
}
