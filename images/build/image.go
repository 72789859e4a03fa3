package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/coracle-engine/coracle/images/debian"
	"github.com/coracle-engine/coracle/images/kernel"
	"github.com/coracle-engine/coracle/images/program"
	"github.com/coracle-engine/coracle/images/rootfs"
	"github.com/coracle-engine/coracle/images/tree"
)

// release is the project's version; an image's is this and a digest of all that went in.
const release = "0.1.0"

type options struct {
	arch, out, cache, guest, pack string
	refresh, force                bool
}

// image is an image before it is written.
type image struct {
	arch, version string
	built         time.Time // of the newest file in Debian's packages: the one time that inputs have
	kernel        *kernel.Kernel
	root          *rootfs.Root
	initrd        *tree.Tree
	packages      []*debian.Package // that something was taken from
	programs      []*program.Program
	modcache      string
}

// build makes the image that o wants, and tells of it on log.
func build(ctx context.Context, o options, log io.Writer) error {
	if o.arch != "amd64" && o.arch != "arm64" {
		return fmt.Errorf("no image can be made for architecture %q: it is amd64 or arm64", o.arch)
	}
	begin := time.Now()
	tell := func(format string, args ...any) {
		fmt.Fprintf(log, "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	if err := needTools("apt-get", "apt", "dpkg-deb", "dpkg", "xz", "xz-utils"); err != nil {
		return err
	}
	img, err := plan(ctx, o, tell)
	if err != nil {
		return err
	}
	tell("image %s for %s: kernel %s, %d packages, %d files, %s", img.version, img.arch, img.kernel.Release,
		len(img.packages), len(img.root.Names()), megabytes(img.root.Size()))
	if o.force || !current(o.out, img) {
		if err := img.write(o.out); err != nil {
			return err
		}
	} else {
		tell("nothing has changed")
	}
	if err := report(o.out, o.arch, tell); err != nil {
		return err
	}
	if o.pack != "" {
		size, err := pack(ctx, o.out, o.arch, o.pack)
		if err != nil {
			return err
		}
		tell("%s: %s of at most %s", o.pack, megabytes(size), megabytes(maxPack))
	}
	return nil
}

// needTools takes pairs of a program and the Debian package that has it.
func needTools(pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		if _, err := exec.LookPath(pairs[i]); err != nil {
			return fmt.Errorf("find %s: install the package %s: %w", pairs[i], pairs[i+1], err)
		}
	}
	return nil
}

// plan gathers everything and lays it out. It writes to the cache alone.
func plan(ctx context.Context, o options, tell func(string, ...any)) (*image, error) {
	osRelease, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return nil, fmt.Errorf("learn which Debian this machine runs: %w", err)
	}
	machine, err := debian.MachineSuite(osRelease)
	if err != nil {
		return nil, err
	}
	archive, err := debian.Open(o.cache, "/etc/apt", machine, debian.Suite, o.arch)
	if err != nil {
		return nil, err
	}
	packages, err := fetch(ctx, archive, append(kernel.Packages(o.arch), rootfs.Packages()...), o.refresh)
	if err != nil {
		return nil, err
	}
	tell("%d packages of Debian %s", len(packages), debian.Suite)
	img := &image{arch: o.arch}
	if img.kernel, err = loadKernel(ctx, packages, o); err != nil {
		return nil, err
	}
	tell("kernel %s with %d modules", img.kernel.Release, len(img.kernel.Modules))
	guest, err := img.build(ctx, o, machine, tell)
	if err != nil {
		return nil, err
	}
	return img, img.layout(packages, guest)
}

func fetch(ctx context.Context, a *debian.Archive, names []string, refresh bool) ([]*debian.Package, error) {
	locked, err := a.Resolve(ctx, names, refresh)
	if err != nil {
		return nil, err
	}
	var want []debian.Locked
	for _, l := range locked {
		if !rootfs.Skip(l.Name) {
			want = append(want, l)
		}
	}
	return a.Fetch(ctx, want)
}

func loadKernel(ctx context.Context, packages []*debian.Package, o options) (*kernel.Kernel, error) {
	for _, p := range packages {
		if kernel.IsImage(p.Name) {
			return kernel.Load(ctx, p, o.arch, o.cache)
		}
	}
	return nil, fmt.Errorf("find the kernel: the archive resolved none for %s", strings.Join(kernel.Packages(o.arch), ", "))
}

// build builds the engine and the guest, which it returns and which comes last in img.programs.
func (img *image) build(ctx context.Context, o options, machine string, tell func(string, ...any)) (*program.Program, error) {
	root, err := checkout()
	if err != nil {
		return nil, err
	}
	cache, err := filepath.Abs(o.cache)
	if err != nil {
		return nil, err
	}
	// libseccomp is linked by the machine's own compiler with the machine's own libc, so it is of the machine's suite.
	b := program.Builder{Root: root, Cache: cache, Arch: o.arch, Seccomp: func(ctx context.Context) (program.Library, string, error) {
		return seccomp(ctx, o, machine)
	}}
	if img.programs, err = b.Engine(ctx); err != nil {
		return nil, err
	}
	tell("engine of %d programs", len(img.programs))
	var guest *program.Program
	if o.guest != "" {
		guest, err = program.Prebuilt(o.guest, release)
	} else {
		guest, err = b.Guest(ctx, release)
	}
	if err != nil {
		return nil, err
	}
	tell("guest of %s", megabytes(guest.Content.Size))
	img.programs = append(img.programs, guest)
	img.modcache, err = b.ModuleCache(ctx)
	return guest, err
}

func seccomp(ctx context.Context, o options, machine string) (program.Library, string, error) {
	a, err := debian.Open(o.cache, "/etc/apt", machine, machine, o.arch)
	if err != nil {
		return program.Library{}, "", err
	}
	p, dir, err := a.Extract(ctx, "libseccomp-dev", o.refresh)
	if err != nil {
		return program.Library{}, "", err
	}
	text, err := p.Nodes["usr/share/doc/libseccomp-dev/copyright"].Content.ReadAll()
	return program.Library{Name: "libseccomp", Version: p.Version, Copyright: text, License: debian.License(text), SHA256: p.SHA256}, dir, err
}

// layout makes the trees, and the version of what is in them.
func (img *image) layout(packages []*debian.Package, guest *program.Program) error {
	engine := img.programs[:len(img.programs)-1]
	licences, err := program.Licences(program.Modules(img.programs), img.modcache)
	if err != nil {
		return fmt.Errorf("collect licences: %w", err)
	}
	if img.root, err = rootfs.Build(packages, img.kernel, engine, guest, licences); err != nil {
		return err
	}
	if img.initrd, err = rootfs.Initramfs(img.kernel, guest); err != nil {
		return fmt.Errorf("lay out the initramfs: %w", err)
	}
	img.packages = img.root.Used
	for _, p := range img.packages {
		if p.Newest.After(img.built) {
			img.built = p.Newest
		}
	}
	all := fmt.Append(nil, img.arch, img.kernel.Image.ID, img.initrd.Digest(), img.root.Digest())
	if img.kernel.ELF != nil {
		all = append(all, img.kernel.ELF.ID...)
	}
	sum := sha256.Sum256(all)
	img.version = release + "+" + hex.EncodeToString(sum[:6])
	return img.root.Release(img.version)
}

// checkout finds the module that this program is part of, from the working directory upward.
func checkout() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "images", "engine", "go.mod")); err == nil {
			return dir, nil
		}
		if filepath.Dir(dir) == dir {
			return "", fmt.Errorf("find the checkout: no directory above this one has images/engine/go.mod")
		}
		dir = filepath.Dir(dir)
	}
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
