package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/lock"
	"github.com/coracle-engine/coracle/host/paths"
	"github.com/coracle-engine/coracle/host/server"
	"github.com/coracle-engine/coracle/host/socket"
	"github.com/coracle-engine/coracle/images/manifest"
)

// The test's own program is coracled where this is set.
const beCoracled = "CORACLE_TEST_BE_CORACLED"

func init() {
	if os.Getenv(beCoracled) != "" {
		main()
		os.Exit(0)
	}
}

// program is coracled with a home of its own, an image that no machine could boot, and no QEMU.
type program struct {
	home string
	env  []string
}

func newProgram(t *testing.T) *program {
	t.Helper()
	home, err := os.MkdirTemp("", "cr") // t.TempDir is too long for sockets where a test's name is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		filepath.WalkDir(home, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				os.Chmod(p, 0o700) // installed images are read-only
			}
			return nil
		})
		os.RemoveAll(home)
	})
	p := &program{home: filepath.Join(home, "h")}
	p.env = []string{
		beCoracled + "=1", "CORACLE_HOME=" + p.home, "HOME=" + home, "DOCKER_CONFIG=" + filepath.Join(home, "docker"),
		"PATH=" + t.TempDir(), "CORACLE_IMAGE=" + testImage(t),
	}
	return p
}

// testImage is the directory of a small image for this host.
func testImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	m := manifest.Manifest{Format: manifest.Format, Version: "1", Arch: guestArch(api.Settings{}), KernelName: "6"}
	for _, name := range []string{manifest.Kernel, manifest.Initrd, manifest.Root} {
		writeFile(t, filepath.Join(dir, name), name)
		f, err := manifest.Measure(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		m.Files = append(m.Files, f)
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(dir, manifest.Name), string(data))
	return dir
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// call runs a command to its end and returns its standard output.
func (p *program) call(t *testing.T, args ...string) ([]byte, int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = p.env
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if stderr.Len() > 0 {
		t.Logf("coracled %q said %s", args, &stderr)
	}
	return out, cmd.ProcessState.ExitCode()
}

// failure runs a start that must fail and returns the one error that it tells.
func (p *program) failure(t *testing.T, args ...string) *api.Error {
	t.Helper()
	out, code := p.call(t, append([]string{"run"}, args...)...)
	var found *api.Error
	for line := range bytes.Lines(out) {
		var e api.Event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("standard output has %q: %v", line, err)
		}
		if e.Kind == api.EventError {
			if found != nil {
				t.Errorf("two errors: %v and %v", found, e.Error)
			}
			found = e.Error
		}
	}
	if found == nil || code != 1 {
		t.Fatalf("exit status %d and no error: want 1 and an error in %s", code, out)
	}
	if found.Message == "" || found.Hint == "" || strings.Contains(found.Hint, "NAME") {
		t.Errorf("error says too little: %+v", found)
	}
	return found
}

// TestFirstStartFails has a machine's first start meet everything that is known before a boot. Of the machine nothing stays.
func TestFirstStartFails(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(t *testing.T, p *program) // before the start
		args   []string
		code   api.Code
		words  string // in the message
	}{
		{"name", nil, []string{"Odd_Name"}, api.CodeName, `"Odd_Name"`},
		{"name leads upward", nil, []string{"../x"}, api.CodeName, `"../x"`},
		{"no QEMU", nil, []string{"work"}, api.CodeNotInstalled, "qemu-system"},
		{"no image", func(t *testing.T, p *program) { p.env = append(p.env, "CORACLE_IMAGE="+t.TempDir()) }, []string{"work"}, api.CodeNoImage, "no guest image"},
		{"other architecture's image", nil, []string{"--arch", map[bool]string{true: "arm64", false: "amd64"}[guestArch(api.Settings{}) == "amd64"], "work"}, api.CodeNoImage, "is for"},
		{"damaged image", func(t *testing.T, p *program) {
			dir := testImage(t)
			writeFile(t, filepath.Join(dir, manifest.Root), "rot")
			p.env = append(p.env, "CORACLE_IMAGE="+dir)
		}, []string{"work"}, api.CodeAssetCorrupt, "root.erofs"},
		{"too much memory", nil, []string{"--memory", "1125899906842624", "work"}, api.CodeNoMemory, "1024TiB"},
		{"too many CPUs", nil, []string{"--cpus", "100000", "work"}, api.CodeConfig, "100000 CPUs"},
		{"small disk", nil, []string{"--disk", "4096", "work"}, api.CodeConfig, "4KiB"},
		{"unknown architecture", nil, []string{"--arch", "riscv64", "work"}, api.CodeConfig, "riscv64"},
		{"long home", func(t *testing.T, p *program) {
			p.home = filepath.Join(p.home, strings.Repeat("x", 90))
			p.env = append(p.env, "CORACLE_HOME="+p.home)
		}, []string{"work"}, api.CodePathTooLong, "at most 103"},
		{"home is a file", func(t *testing.T, p *program) { writeFile(t, p.home, "") }, []string{"work"}, api.CodeInternal, "make machine's directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProgram(t)
			if test.change != nil {
				test.change(t, p)
			}
			e := p.failure(t, test.args...)
			if e.Code != test.code || !strings.Contains(e.Message, test.words) {
				t.Errorf("error is %+v: want code %s and %q", e, test.code, test.words)
			}
			if left, _ := os.ReadDir(paths.Machines(p.home)); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(p.home), "docker")); err == nil {
				t.Error("docker's settings were touched")
			}
		})
	}
}

// TestLaterStartFails has a machine with data whose start fails: nothing of it goes.
func TestLaterStartFails(t *testing.T) {
	p := newProgram(t)
	place, err := paths.ForMachine(p.home, "work")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, place.Config(), "version: 1\ncpus: 1\nmemory: 1GiB\ndisk: 8GiB\n")
	writeFile(t, place.DataDisk(), "data")
	if err := os.Truncate(place.DataDisk(), 8<<30); err != nil {
		t.Fatal(err)
	}
	if e := p.failure(t, "--disk", "4294967296", "work"); e.Code != api.CodeConfig || !strings.Contains(e.Message, "cannot shrink") {
		t.Errorf("error is %+v: want one about shrinking", e)
	}
	if e := p.failure(t, "work"); e.Code != api.CodeNotInstalled {
		t.Errorf("error is %+v: want code %s", e, api.CodeNotInstalled)
	}
	st, err := api.New(place).Status(t.Context())
	if err != nil || st.State != api.Failed || st.Error == nil || st.Error.Code != api.CodeNotInstalled || st.Settings.Disk != 8<<30 {
		t.Errorf("status is %+v, error %v", st, err)
	}
	for _, left := range []string{place.APISocket(), place.DockerSocket(), place.RunDir()} {
		if _, err := os.Lstat(left); err == nil {
			t.Errorf("%s is left", left)
		}
	}
	head := make([]byte, 4)
	f, err := os.Open(place.DataDisk())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.ReadAt(head, 0); string(head) != "data" {
		t.Errorf("the data disk begins with %q", head)
	}
}

// TestFirstLifeFails has a machine fail in its first life after its guest wrote data, and the console's log be gone by then.
func TestFirstLifeFails(t *testing.T) {
	p := newProgram(t)
	place, err := paths.ForMachine(p.home, "work")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	p.env = append(p.env, "PATH="+bin, "CORACLE_ACCEL=tcg")
	qemu := filepath.Join(bin, map[string]string{"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[guestArch(api.Settings{})])
	writeFile(t, qemu, `#!/bin/sh
case "$1" in
--version) echo QEMU emulator version 8.0.0 ;;
*) /bin/dd if=/dev/urandom of="`+place.DataDisk()+`" bs=65536 count=32 conv=notrunc 2>/dev/null; exit 1 ;;
esac
`)
	if err := os.Chmod(qemu, 0o700); err != nil {
		t.Fatal(err)
	}
	if e := p.failure(t, "work"); e.Code != api.CodeCrashed {
		t.Errorf("error is %+v: want code %s", e, api.CodeCrashed)
	}
	if _, err := os.Stat(place.DataDisk()); err != nil {
		t.Errorf("the data is gone: %v", err)
	}
}

// TestInherited has whoever starts the program leave a file open for it, as a script does that holds a lock.
func TestInherited(t *testing.T) {
	p := newProgram(t)
	place, err := paths.ForMachine(p.home, "work")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(place.Dir, "kept"), "")
	held, err := lock.Take(t.Context(), place.Lock(), 0) // so that the program waits for lockWait
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "run", "work")
	cmd.Env, cmd.ExtraFiles = p.env, []*os.File{w}
	err = cmd.Start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	r.Read(make([]byte, 1)) // ends when nobody has the other end
	if took := time.Since(began); took > lockWait-time.Second {
		t.Errorf("the file was held for %v, until the program's end", took)
	}
	cmd.Process.Kill()
	cmd.Wait()
}

// TestOwned has another process own the machine.
func TestOwned(t *testing.T) {
	p := newProgram(t)
	place, err := paths.ForMachine(p.home, "work")
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(place.Dir, "kept"), "")
	held, err := lock.Take(t.Context(), place.Lock(), 0)
	if err != nil {
		t.Fatal(err)
	}
	l, err := socket.Listen(place.APISocket())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	owner := &owner{state: api.Running}
	srv := server.New(owner, slog.New(slog.DiscardHandler))
	go srv.Serve(l)
	began := time.Now()
	if e := p.failure(t, "work"); e.Code != api.CodeRunning || e.Message != `machine "work" is running` {
		t.Errorf("error is %+v", e)
	}
	if took := time.Since(began); took > lockWait {
		t.Errorf("an owner that answers was waited for, %v", took)
	}
	if out, code := p.call(t, "delete", "work"); code != 1 || !strings.Contains(string(out), string(api.CodeRunning)) {
		t.Errorf("delete: exit status %d, %s", code, out)
	}
	if conn, err := socket.Dial(t.Context(), place.APISocket()); err != nil {
		t.Errorf("the owner's socket is gone: %v", err)
	} else {
		conn.Close()
	}

	owner.say(api.Stopping) // and is gone a little later
	time.AfterFunc(time.Second, func() { held.Close() })
	if e := p.failure(t, "work"); e.Code != api.CodeNotInstalled {
		t.Errorf("error is %+v: want code %s", e, api.CodeNotInstalled)
	}

	again, err := lock.Take(t.Context(), place.Lock(), lockWait)
	if err != nil {
		t.Fatal(err)
	}
	srv.Close() // the owner dies, and what it started lets go a little later
	time.AfterFunc(time.Second, func() { again.Close() })
	if e := p.failure(t, "work"); e.Code != api.CodeNotInstalled {
		t.Errorf("error is %+v: want code %s", e, api.CodeNotInstalled)
	}
	if _, err := os.Stat(filepath.Join(place.Dir, "kept")); err != nil {
		t.Error(err)
	}
}

// owner is a machine of another process, which does nothing.
type owner struct {
	server.Machine
	mu    sync.Mutex
	state api.State
}

func (o *owner) say(s api.State) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.state = s
}

func (o *owner) Status() api.Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	return api.Status{Name: "work", State: o.state}
}

// TestShortCommands asks for what the command line cannot do itself.
func TestShortCommands(t *testing.T) {
	p := newProgram(t)
	var checks []api.Check
	if out, code := p.call(t, "doctor"); code != 0 || json.Unmarshal(out, &checks) != nil {
		t.Fatalf("doctor: exit status %d, %s", code, out)
	}
	levels := map[string]string{}
	for _, c := range checks {
		levels[c.Name] = c.Level
		if c.Level != api.CheckOK && c.Hint == "" {
			t.Errorf("%+v gives no hint", c)
		}
	}
	if levels["hypervisor qemu"] != api.CheckFail || levels["guest image"] != api.CheckOK {
		t.Errorf("checks are %+v", checks)
	}
	if _, err := os.Stat(p.home); err == nil {
		t.Error("doctor made the home")
	}
	for _, test := range []struct {
		args []string
		code api.Code
	}{{[]string{"delete", "work"}, api.CodeNotFound}, {[]string{"delete", "--", "-x"}, api.CodeName}} {
		out, code := p.call(t, test.args...)
		var e api.Error
		if err := json.Unmarshal(out, &e); err != nil || code != 1 || e.Code != test.code || e.Hint == "" {
			t.Errorf("%v: exit status %d, %s", test.args, code, out)
		}
	}
	for _, args := range [][]string{nil, {"fly"}, {"run"}, {"run", "a", "b"}, {"run", "--cpus", "x", "a"}} {
		if out, code := p.call(t, args...); code == 0 || len(out) > 0 {
			t.Errorf("%q: exit status %d, %s", args, code, out)
		}
	}
}

// TestDelete removes a machine with its docker context, and not the one beside it.
func TestDelete(t *testing.T) {
	p := newProgram(t)
	docker := filepath.Join(filepath.Dir(p.home), "docker")
	t.Setenv("DOCKER_CONFIG", docker)
	for _, name := range []string{"work", "play"} {
		place, err := paths.ForMachine(p.home, name)
		if err != nil {
			t.Fatal(err)
		}
		writeFile(t, place.DataDisk(), "data")
		if err := dockerContext(place).Set(); err != nil {
			t.Fatal(err)
		}
	}
	if out, code := p.call(t, "delete", "--", "work"); code != 0 {
		t.Fatalf("exit status %d, %s", code, out)
	}
	left, err := os.ReadDir(paths.Machines(p.home))
	if err != nil || len(left) != 1 || left[0].Name() != "play" {
		t.Errorf("left is %v, error %v", left, err)
	}
	var found []string
	filepath.WalkDir(docker, func(p string, d fs.DirEntry, err error) error {
		if data, err := os.ReadFile(p); err == nil && strings.HasSuffix(p, ".json") {
			found = append(found, string(data))
		}
		return nil
	})
	if all := strings.Join(found, " "); strings.Contains(all, "coracle-work") || !strings.Contains(all, "coracle-play") {
		t.Errorf("docker's settings are %s", all)
	}
}

// TestFirstStartsTogether has many processes want to make the same machine at once. Each fails for want of QEMU, or finds
// another one at it; none trips over what another one removes.
func TestFirstStartsTogether(t *testing.T) {
	p := newProgram(t)
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			if e := p.failure(t, "work"); e.Code != api.CodeNotInstalled && e.Code != api.CodeRunning {
				t.Errorf("error is %+v", e)
			}
		})
	}
	all.Wait()
	if left, _ := os.ReadDir(paths.Machines(p.home)); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}
