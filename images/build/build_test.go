package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/images/kernel"
	"github.com/coracle-engine/coracle/images/manifest"
	"github.com/coracle-engine/coracle/images/rootfs"
	"github.com/coracle-engine/coracle/images/tree"
)

// small is an image of next to nothing.
func small(t *testing.T, arch string) *image {
	t.Helper()
	elf := tree.Bytes([]byte("elf"))
	img := &image{arch: arch, version: "1.2+abc", built: time.Unix(1_700_000_000, 0), root: &rootfs.Root{}, initrd: &tree.Tree{},
		kernel: &kernel.Kernel{Release: "6.1-x", Image: tree.Bytes([]byte("kernel")), ELF: &elf}}
	if err := errors.Join(img.root.Release(img.version), img.initrd.File("init", 0o755, tree.Bytes([]byte("init")))); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestWrite(t *testing.T) {
	for arch, want := range map[string][]string{
		"amd64": {".made", "initrd", "manifest.json", "root.erofs", "sbom.spdx.json", "vmlinux", "vmlinuz"},
		"arm64": {".made", "initrd", "manifest.json", "root.erofs", "sbom.spdx.json", "vmlinuz"},
	} {
		dir, img := filepath.Join(t.TempDir(), "out"), small(t, arch)
		if current(dir, img) {
			t.Error("a directory that is not there is current")
		}
		if err := img.write(dir); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, fileNames(t, dir)); diff != "" {
			t.Errorf("%s: files (-want +got):\n%s", arch, diff)
		}
		m, _, err := manifest.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if m.Version != img.version || m.Arch != arch || m.KernelName != "6.1-x" || len(m.Files) != len(want)-2 {
			t.Errorf("manifest is %+v", m)
		}
		for _, f := range m.Files {
			if err := f.Verify(dir); err != nil {
				t.Error(err)
			}
		}
		if !current(dir, img) {
			t.Error("what was just written is not current")
		}
		other := small(t, arch)
		other.version = "1.2+def"
		if current(dir, other) {
			t.Error("another version is current")
		}
		if err := os.Truncate(filepath.Join(dir, manifest.Root), 10); err != nil {
			t.Fatal(err)
		}
		if current(dir, img) {
			t.Error("an image with a truncated root is current")
		}
	}
}

// TestWriteKeepsOld holds that a machine which has the old root open goes on reading it, and that a build which fails
// leaves the old image whole.
func TestWriteKeepsOld(t *testing.T) {
	dir, img := t.TempDir(), small(t, "arm64")
	if err := img.write(dir); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(dir, manifest.Root))
	if err != nil {
		t.Fatal(err)
	}
	running, err := os.Open(filepath.Join(dir, manifest.Root))
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	next := small(t, "arm64")
	if err := next.root.File("more", 0o644, tree.Bytes(make([]byte, 9999))); err != nil {
		t.Fatal(err)
	}
	if err := next.write(dir); err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(running); err != nil || !bytes.Equal(data, before) {
		t.Errorf("the open root has changed, error %v", err)
	}
	names := fileNames(t, dir)
	bad := small(t, "arm64")
	if err := bad.root.File("broken", 0o644, tree.Section("/nowhere", 0, 1, "x")); err != nil {
		t.Fatal(err)
	}
	if err := bad.write(dir); err == nil || !strings.Contains(err.Error(), "write root.erofs: write broken") {
		t.Errorf("error is %v", err)
	}
	if diff := cmp.Diff(names, fileNames(t, dir)); diff != "" || !current(dir, next) {
		t.Errorf("a failed build has changed the image: %s", diff)
	}
}

func fileNames(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestArchive(t *testing.T) {
	dir, img := t.TempDir(), small(t, "amd64")
	if err := img.write(dir); err != nil {
		t.Fatal(err)
	}
	var one, two bytes.Buffer
	if err := archive(&one, dir, "amd64"); err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(time.Hour)
	if err := errors.Join(os.Chtimes(filepath.Join(dir, manifest.Kernel), later, later), archive(&two, dir, "amd64")); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) {
		t.Error("a file's time changes the archive")
	}
	var names []string
	for r := tar.NewReader(&one); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if diff := cmp.Diff([]string{"manifest.json", "vmlinux", "vmlinuz", "initrd", "root.erofs", "sbom.spdx.json"}, names); diff != "" {
		t.Errorf("archive (-want +got):\n%s", diff)
	}
}

func TestPackWithoutZstd(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := pack(context.Background(), t.TempDir(), "amd64", "x"); err == nil || !strings.Contains(err.Error(), "install the package zstd") {
		t.Errorf("error is %v", err)
	}
}

func TestBuildRefuses(t *testing.T) {
	if err := build(context.Background(), options{arch: "riscv64"}, io.Discard); err == nil || !strings.Contains(err.Error(), `"riscv64": it is amd64 or arm64`) {
		t.Errorf("error is %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if err := build(context.Background(), options{arch: "amd64"}, io.Discard); err == nil || !strings.Contains(err.Error(), "find apt-get: install the package apt") {
		t.Errorf("error is %v", err)
	}
}

// TestIntegrationReproducible builds the whole image twice, the second time with everything but downloads and Go's cache
// made anew, and compares every byte. Then it looks at the root with another program than the one that made it.
func TestIntegrationReproducible(t *testing.T) {
	if os.Getenv("CORACLE_IMAGE_TEST") == "" {
		t.Skip("this builds two images and needs the network: set CORACLE_IMAGE_TEST=1 (and CORACLE_IMAGE_ARCH=arm64 for that)")
	}
	arch := os.Getenv("CORACLE_IMAGE_ARCH")
	if arch == "" {
		arch = "amd64"
	}
	root, err := checkout()
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(root)
	first := options{arch: arch, out: t.TempDir(), cache: filepath.Join(root, "build", "cache"), force: true}
	second := options{arch: arch, out: t.TempDir(), cache: t.TempDir(), force: true}
	unlock, err := lock(first.cache)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if err := build(t.Context(), first, t.Output()); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(first.cache, "debian"), filepath.Join(second.cache, "debian")); err != nil {
		t.Fatal(err)
	}
	if err := build(t.Context(), second, t.Output()); err != nil {
		t.Fatal(err)
	}
	for _, name := range names(arch) {
		a, err := manifest.Measure(first.out, name)
		b, err2 := manifest.Measure(second.out, name)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		if a != b {
			t.Errorf("%s: %d bytes, %s the first time; %d bytes, %s the second", name, a.Size, a.SHA256, b.Size, b.SHA256)
		}
	}
	checkRoot(t, first, root)
}

// checkRoot extracts the root with fsck.erofs and compares it with the plan, and asks busybox for its applets.
func checkRoot(t *testing.T, o options, checkout string) {
	t.Helper()
	if _, err := exec.LookPath("fsck.erofs"); err != nil {
		t.Skip("fsck.erofs is needed: install the package erofs-utils")
	}
	dir := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("fsck.erofs", "--extract="+dir, filepath.Join(o.out, manifest.Root)).CombinedOutput(); err != nil {
		t.Fatalf("fsck.erofs: %v: %s", err, out)
	}
	img, err := plan(t.Context(), o, func(string, ...any) {})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range img.root.Names() {
		n, _ := img.root.Get(name)
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Error(err)
			continue
		}
		if st.Mode().Type() != n.Mode.Type() || n.Mode.IsRegular() && (st.Size() != n.Content.Size || st.Mode() != n.Mode) {
			t.Errorf("%s has mode %v and %d bytes: want %v and %d", name, st.Mode(), st.Size(), n.Mode, n.Content.Size)
		}
		if !n.Mode.IsRegular() {
			continue
		}
		got, err := os.ReadFile(filepath.Join(dir, name))
		want, err2 := n.Content.ReadAll()
		if err := errors.Join(err, err2); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s differs from what went in, error %v", name, err)
		}
	}
	checkApplets(t, o.arch, img, dir)
	var bill map[string]any
	if data, err := os.ReadFile(filepath.Join(o.out, manifest.SBOM)); err != nil || json.Unmarshal(data, &bill) != nil {
		t.Errorf("the bill of materials is no JSON, error %v", err)
	}
}

func checkApplets(t *testing.T, arch string, img *image, dir string) {
	t.Helper()
	if machine, _ := exec.Command("uname", "-m").Output(); arch != "amd64" || strings.TrimSpace(string(machine)) != "x86_64" {
		return
	}
	out, err := exec.Command(filepath.Join(dir, "usr/bin/busybox"), "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for name := range strings.FieldsSeq(string(out)) {
		have[name] = true
	}
	for _, name := range img.root.Names() {
		n, _ := img.root.Get(name)
		if path := filepath.Base(name); filepath.Base(n.Target) == "busybox" && !have[path] {
			t.Errorf("busybox has no applet %s", path)
		}
	}
}
