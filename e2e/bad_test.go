//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestBadInput meets every failure that issue 3 names: each is one clear error with a next step, and leaves nothing half made.
func TestBadInput(t *testing.T) {
	needVM(t)
	for _, tc := range []struct {
		name  string
		args  []string
		words []string
		setup func(t *testing.T, u *user)
	}{
		{name: "no QEMU", words: []string{"qemu-system", "hint:"}, setup: func(t *testing.T, u *user) {
			u.env = append(u.env, "PATH="+t.TempDir())
		}},
		{name: "a damaged image", words: []string{"image", "root.erofs", "hint:"}, setup: func(t *testing.T, u *user) {
			useImage(t, u, func(dir string) { flipByte(t, filepath.Join(dir, "root.erofs")) })
		}},
		{name: "a truncated image", words: []string{"image", "vmlinuz", "hint:"}, setup: func(t *testing.T, u *user) {
			useImage(t, u, func(dir string) {
				if err := os.Truncate(filepath.Join(dir, "vmlinuz"), 1000); err != nil {
					t.Fatal(err)
				}
			})
		}},
		{name: "no image", words: []string{"image", "hint:"}, setup: func(t *testing.T, u *user) {
			u.env = append(u.env, "CORACLE_IMAGE="+t.TempDir())
		}},
		{name: "a full disk", words: []string{"space", "hint:"}, setup: fullDisk},
		{name: "too much memory", args: []string{"--memory", "900GiB"}, words: []string{"memory", "900", "hint:"}},
		{name: "too little memory", args: []string{"--memory", "1MiB"}, words: []string{"memory", "hint:"}},
		{name: "too many CPUs", args: []string{"--cpus", "4096"}, words: []string{"4096", "hint:"}},
		{name: "a name with a slash", args: []string{"../../etc"}, words: []string{"machine name", "../../etc"}},
		{name: "a name with a comma", args: []string{"a,b"}, words: []string{"machine name", "a,b"}},
		{name: "an empty name", args: []string{""}, words: []string{"machine name"}},
		{name: "a long socket path", words: []string{"too long", "CORACLE_HOME"}, setup: func(t *testing.T, u *user) {
			u.env = append(u.env, "CORACLE_HOME="+filepath.Join(u.home, strings.Repeat("long", 30)))
		}},
		{name: "a qcow2 disk", words: []string{"data.img", "hint:"}, setup: func(t *testing.T, u *user) {
			writeFile(t, filepath.Join(u.home, "machines/default/data.img"), "QFI\xfb\x00\x00\x00\x03 and a backing file")
		}},
		{name: "settings that are not YAML", words: []string{"config.yaml"}, setup: func(t *testing.T, u *user) {
			writeFile(t, filepath.Join(u.home, "machines/default/config.yaml"), "cpus: [\n")
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := newUser(t)
			if tc.setup != nil {
				tc.setup(t, u)
			}
			r := u.fails(t, 1, tc.words, "coracle", append([]string{"start"}, tc.args...)...)
			if n := strings.Count(r.stderr, "error:"); n != 1 {
				t.Errorf("%d errors, want one: %s", n, r.stderr)
			}
			eventually(t, 5*time.Second, func() error { // the host process lets go of what it had after it has told why
				if left := processes(t, u.home); len(left) != 0 {
					return fmt.Errorf("processes left: %v", left)
				}
				return nil
			})
			if got := u.docker(t, "context", "ls", "-q"); got != "default" {
				t.Errorf("docker contexts left: %q", got)
			}
			for _, sock := range []string{"api.sock", "docker.sock"} {
				if _, err := os.Lstat(filepath.Join(u.home, "machines/default", sock)); err == nil {
					t.Errorf("%s was left", sock)
				}
			}
		})
	}
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

// useImage gives u a copy of the image that spoil may change.
func useImage(t *testing.T, u *user, spoil func(dir string)) {
	t.Helper()
	dir := filepath.Join(filepath.Dir(u.home), "image")
	if out, err := exec.Command("cp", "-r", filepath.Join(root, "build/image", runtime.GOARCH), dir).CombinedOutput(); err != nil {
		t.Fatalf("copy image: %v: %s", err, out)
	}
	spoil(dir)
	u.env = append(u.env, "CORACLE_IMAGE="+dir)
}

func flipByte(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 5<<20); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, 5<<20); err != nil {
		t.Fatal(err)
	}
}

// fullDisk puts u's home on a file system of its own with no room for an image.
func fullDisk(t *testing.T, u *user) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts a small file system: run as root")
	}
	if err := os.MkdirAll(u.home, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", u.home).CombinedOutput(); err != nil {
		t.Fatalf("mount a small file system: %v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("umount", "-l", u.home).Run() })
}
