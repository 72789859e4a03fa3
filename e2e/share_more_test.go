//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func owner(st os.FileInfo) int { return int(st.Sys().(*syscall.Stat_t).Uid) }

// ownIDs is how the toolbox prints the owner of a file that this process makes.
func ownIDs() string { return strconv.Itoa(os.Getuid()) + ":" + strconv.Itoa(os.Getgid()) }

// manyFiles lists a directory of 100,000 files in a container; each name comes once.
func manyFiles(t *testing.T, u *user) {
	dir := u.dir(t, "many")
	const n = 100_000
	for i := range n {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%05d", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := u.ask(t, dir)
	defer p.end()
	names := strings.Fields(p.do(t, "list /src"))
	if len(names) != n || names[0] != "f00000" || names[n-1] != fmt.Sprintf("f%05d", n-1) {
		t.Errorf("%d names: %.50q", len(names), names)
	}
	seen := map[string]bool{}
	for _, name := range names {
		seen[name] = true
	}
	if len(seen) != n {
		t.Errorf("%d different names", len(seen))
	}
	os.RemoveAll(dir)
}

// sharesChange adds, narrows and removes shares without a restart.
func sharesChange(t *testing.T, u *user) {
	dir, err := os.MkdirTemp("/var/tmp", "coracle share ")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("shared now"), 0o644); err != nil {
		t.Fatal(err)
	}
	running := u.docker(t, "run", "-d", "toolbox", "hold")
	defer u.docker(t, "rm", "-f", running)
	mount := "type=bind,src=" + dir + ",dst=/src"
	u.fails(t, 125, []string{"not shared"}, "docker", "run", "--rm", "--mount", mount, "toolbox", "cat", "/src/file")
	u.ok(t, "coracle", "config", "add", "shares", dir)
	if got := u.docker(t, "run", "--rm", "--mount", mount, "toolbox", "cat", "/src/file"); got != "shared now" {
		t.Errorf("got %q", got)
	}
	u.ok(t, "coracle", "config", "remove", "shares", dir)
	u.ok(t, "coracle", "config", "add", "shares", dir+":ro")
	u.fails(t, 1, []string{"read-only"}, "docker", "run", "--rm", "--mount", mount, "toolbox", "write", "/src/no", "x")
	if got := u.docker(t, "run", "--rm", "--mount", mount, "toolbox", "cat", "/src/file"); got != "shared now" {
		t.Errorf("read-only: got %q", got)
	}
	u.ok(t, "coracle", "config", "remove", "shares", dir)
	u.fails(t, 125, []string{"not shared"}, "docker", "run", "--rm", "--mount", mount, "toolbox", "cat", "/src/file")
	if got := u.docker(t, "inspect", "-f", "{{.State.Running}}", running); got != "true" {
		t.Error("a container did not survive that")
	}
}

// programs makes an image of the host's own programs with the libraries that they need.
func (u *user) programs(tb testing.TB, name string, files ...string) {
	tb.Helper()
	dir := tb.TempDir()
	add := func(path string) {
		target := filepath.Join(dir, "root", path)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			tb.Fatal(err)
		}
		if out, err := exec.Command("cp", "-rLn", path, filepath.Dir(target)+"/").CombinedOutput(); err != nil {
			tb.Fatalf("copy %s: %v: %s", path, err, out)
		}
	}
	for _, f := range files {
		add(f)
		out, _ := exec.Command("ldd", f).Output() // static ones, scripts and directories have none
		for word := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(word, "/") {
				add(word)
			}
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "root/tmp"), 0o777); err != nil {
		tb.Fatal(err)
	}
	archive := filepath.Join(dir, "archive")
	if out, err := exec.Command("tar", "-C", filepath.Join(dir, "root"), "-cf", archive, ".").CombinedOutput(); err != nil {
		tb.Fatalf("tar: %v: %s", err, out)
	}
	u.docker(tb, "import", "-c", "ENV PATH=/bin:/usr/bin:/usr/local/bin HOME=/tmp", archive, name)
}

// find is where one of the host's programs lies.
func find(tb testing.TB, name string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		tb.Skipf("%v: install it (packaging/deps.sh does where it is a package of Debian's)", err)
	}
	return path
}

// fioVerifies writes blocks in random order with fio, and reads them back by their check sums: through calls and through
// memory maps.
func fioVerifies(t *testing.T, u *user) {
	u.programs(t, "fio", find(t, "fio"))
	dir := u.dir(t, "fio")
	for _, engine := range []string{"psync", "mmap"} {
		out := u.docker(t, "run", "--rm", "-v", dir+":/src", "fio", find(t, "fio"), "--name=verify", "--directory=/src", "--ioengine="+engine,
			"--rw=randwrite", "--bsrange=512-128k", "--size=24m", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=7", "--thread", "--minimal")
		if fields := strings.Split(out, ";"); len(fields) < 5 || fields[4] != "0" {
			t.Errorf("%s: fio says %q", engine, out)
		}
	}
}

// buildsOnShare does on a share what people do there all day.
func buildsOnShare(t *testing.T, u *user) {
	dir := u.dir(t, "builds")
	if out, err := exec.Command("git", "clone", "-q", "--bare", "--depth", "20", "file://"+root, filepath.Join(dir, "origin.git")).CombinedOutput(); err != nil {
		t.Fatalf("make a repository: %v: %s", err, out)
	}
	t.Run("git", func(t *testing.T) {
		core := strings.TrimSpace(string(output(t, "git", "--exec-path")))
		u.programs(t, "git", find(t, "git"), filepath.Join(core, "git-upload-pack"), "/bin/sh")
		git := []string{"run", "--rm", "-v", dir + ":/src", "-e", "GIT_EXEC_PATH=" + core, "-e", "GIT_CONFIG_COUNT=1", "-e", "GIT_CONFIG_KEY_0=safe.directory", "-e", "GIT_CONFIG_VALUE_0=*", "git", find(t, "git")}
		u.docker(t, append(git, "clone", "-q", "--no-hardlinks", "/src/origin.git", "/src/clone")...)
		u.docker(t, append(git, "-C", "/src/clone", "fsck", "--no-progress")...)
		if got := u.docker(t, append(git, "-C", "/src/clone", "status", "--porcelain")...); got != "" {
			t.Errorf("a fresh clone has changes:\n%s", got)
		}
		// The host's own git sees the same tree.
		if got := output(t, "git", "-c", "safe.directory=*", "-C", filepath.Join(dir, "clone"), "status", "--porcelain"); len(got) != 0 {
			t.Errorf("on the host the clone has changes:\n%s", got)
		}
	})
	t.Run("Go", func(t *testing.T) {
		goRoot, mounted := strings.TrimSpace(string(output(t, "go", "env", "GOROOT"))), u.dir(t, "builds/goroot")
		cp := exec.Command("cp", "-r", "bin", "go.env", "VERSION", "pkg", "src", mounted)
		cp.Dir = goRoot
		if out, err := cp.CombinedOutput(); err != nil {
			t.Fatalf("copy Go: %v: %s", err, out)
		}
		u.put(t, "builds/prog/go.mod", "module prog\n\ngo 1.24\n")
		u.put(t, "builds/prog/main.go", "package main\n\nfunc main() { println(\"built on a share\") }\n")
		u.docker(t, "run", "--rm", "-v", dir+":/src", "-w", "/src/prog", "-e", "GOROOT=/src/goroot", "-e", "CGO_ENABLED=0", "-e", "GOFLAGS=-buildvcs=false",
			"-e", "GOCACHE=/src/cache", "-e", "GOTOOLCHAIN=local", "-e", "HOME=/", "-e", "GOTMPDIR=/src", "--entrypoint", "/src/goroot/bin/go", "toolbox", "build", "-o", "prog", ".")
		if got := string(output(t, "sh", "-c", filepath.Join(dir, "prog/prog")+" 2>&1")); strings.TrimSpace(got) != "built on a share" {
			t.Errorf("the program says %q", got)
		}
	})
	t.Run("npm", func(t *testing.T) {
		node, npm := find(t, "node"), find(t, "npm")
		u.programs(t, "node", node, "/bin/sh")
		if out, err := exec.Command("cp", "-r", filepath.Dir(filepath.Dir(npm)), filepath.Join(dir, "npm")).CombinedOutput(); err != nil {
			t.Fatalf("copy npm: %v: %s", err, out)
		}
		for i := range 20 {
			u.put(t, fmt.Sprintf("builds/dep%d/package.json", i), fmt.Sprintf(`{"name":"dep%d","version":"1.0.0","main":"index.js"}`, i))
			u.put(t, fmt.Sprintf("builds/dep%d/index.js", i), fmt.Sprintf("module.exports = %d\n", i))
		}
		deps := []string{}
		for i := range 20 {
			deps = append(deps, fmt.Sprintf(`"dep%d":"file:../dep%d"`, i, i))
		}
		u.put(t, "builds/app/package.json", `{"name":"app","version":"1.0.0","scripts":{"build":"node build.js"},"dependencies":{`+strings.Join(deps, ",")+`}}`)
		u.put(t, "builds/app/build.js", "let sum = 0; for (let i = 0; i < 20; i++) sum += require('dep'+i); require('fs').writeFileSync('sum.txt', String(sum))\n")
		run := func(args ...string) {
			u.docker(t, append([]string{"run", "--rm", "-v", dir + ":/src", "-w", "/src/app", "-e", "npm_config_cache=/tmp/npm", "node", node, "/src/npm/bin/" + filepath.Base(npm)}, args...)...)
		}
		run("install", "--offline", "--install-links", "--no-audit", "--no-fund")
		u.docker(t, "run", "--rm", "-v", dir+":/src", "-w", "/src/app", "node", node, "build.js")
		if b, err := os.ReadFile(filepath.Join(dir, "app/sum.txt")); err != nil || string(b) != "190" {
			t.Errorf("the build made %q, %v", b, err)
		}
	})
}

func output(tb testing.TB, name string, args ...string) []byte {
	tb.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		tb.Fatalf("%s %v: %v", name, args, err)
	}
	return out
}

// shareEscapes is faults.md's test 7 and 9 as a container's root can try them (CVE-2026-93834, CVE-2026-77179,
// CVE-2020-35517, CVE-2026-79994): links and moves that race with what host and container do. What lies outside the share is
// neither read nor changed. host/share's own tests race harder, without a virtual machine between.
func shareEscapes(t *testing.T, u *user) {
	outside := t.TempDir()
	canary := filepath.Join(outside, "canary")
	if err := os.WriteFile(canary, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := u.dir(t, "escape")
	u.docker(t, "run", "--rm", "--privileged", "-v", dir+":/src", "toolbox", "escape", "/src", outside, "5")
	stop := time.Now().Add(3 * time.Second)
	for time.Now().Before(stop) { // the host swaps a directory for a link while the container works in it
		sub := filepath.Join(dir, "swap")
		_ = os.Mkdir(sub, 0o755)
		_ = os.Rename(sub, sub+"~")
		_ = os.Symlink(outside, sub)
		_ = os.Remove(sub)
		_ = os.Remove(sub + "~")
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 1 {
		t.Errorf("outside there is %v, %v", entries, err)
	}
	if b, err := os.ReadFile(canary); err != nil || string(b) != "untouched" {
		t.Errorf("the canary is %q, %v", b, err)
	}
}
