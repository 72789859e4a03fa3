package program

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// compilers are the C compilers, and the Debian packages that have them. A machine's own needs no prefix.
var compilers = map[string]struct{ prefix, packages string }{
	"amd64": {"x86_64-linux-gnu-", "gcc-x86-64-linux-gnu libc6-dev-amd64-cross"},
	"arm64": {"aarch64-linux-gnu-", "gcc-aarch64-linux-gnu libc6-dev-arm64-cross"},
}

// cgo returns the environment for linking with libseccomp for b.Arch, and the libraries that end up in the program. All
// that decides about the bytes is in the environment: Builder.key reads it.
func (b Builder) cgo(ctx context.Context) ([]string, []Library, error) {
	c, ok := compilers[b.Arch]
	if !ok {
		return nil, nil, fmt.Errorf("no C compiler is known for %s", b.Arch)
	}
	cc, packages := c.prefix+"gcc", c.packages
	if b.Arch == runtime.GOARCH {
		cc, packages = "gcc", "gcc libc6-dev"
	}
	version, err := exec.CommandContext(ctx, cc, "-v").CombinedOutput()
	if err != nil {
		return nil, nil, fmt.Errorf("find the C compiler %s: install the packages %s: %w", cc, packages, err)
	}
	libc, sum, err := glibc(ctx, cc)
	if err != nil {
		return nil, nil, fmt.Errorf("find the static C library: install the packages %s: %w", packages, err)
	}
	if _, err := exec.LookPath("pkg-config"); err != nil {
		return nil, nil, fmt.Errorf("find pkg-config: install the package pkg-config: %w", err)
	}
	seccomp, root, err := b.Seccomp(ctx)
	if err != nil {
		return nil, nil, err
	}
	found, err := filepath.Glob(filepath.Join(root, "usr/lib/*/pkgconfig"))
	if err != nil || len(found) != 1 {
		return nil, nil, fmt.Errorf("find pkgconfig in %s: %d directories match", root, len(found))
	}
	lines := strings.Split(strings.TrimSpace(string(version)), "\n")
	return []string{"CGO_ENABLED=1", "CC=" + cc, "PKG_CONFIG_SYSROOT_DIR=" + root, "PKG_CONFIG_LIBDIR=" + found[0],
		"CGO_CFLAGS=-O2 -g0", "CORACLE_CC=" + lines[len(lines)-1], "CORACLE_LIBC=" + sum}, []Library{seccomp, libc}, nil
}

var libcBanner = regexp.MustCompile(`GNU C Library \(Debian GLIBC ([^)]+)\)`)

// glibc returns what the static C library of the compiler cc says of itself, and its digest.
func glibc(ctx context.Context, cc string) (Library, string, error) {
	out, err := exec.CommandContext(ctx, cc, "-print-file-name=libc.a").Output()
	if err != nil {
		return Library{}, "", err
	}
	data, err := os.ReadFile(strings.TrimSpace(string(out)))
	if err != nil {
		return Library{}, "", err
	}
	l := Library{Name: "glibc", Version: "NOASSERTION", License: "LGPL-2.1-or-later"}
	if m := libcBanner.FindSubmatch(data); m != nil {
		l.Version = string(m[1])
	}
	sum := sha256.Sum256(data)
	return l, hex.EncodeToString(sum[:]), nil
}
