// Package kernel takes from Debian's kernel package what a guest needs: the bootable file, and the modules that the list in
// want.go names, with all that they depend on, uncompressed and in loading order. The initramfs and the root get a plain
// list of them, modules.coracle, which guest/boot reads:
//
//	NAME CLASS PATH [DEP...]
//
// One module per line, fields separated by one space, in dependency order: the modules that one needs, directly or not,
// stand on earlier lines and are its DEPs. NAME has underscores, as /proc/modules spells it. CLASS is root, vsock, boot,
// late or demand (see Class). PATH is absolute. Lines that begin with # are comments. Beside it lie modules.alias (kmod's
// format, for the modules that are there) and Debian's own modules.builtin.
package kernel

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/coracle-engine/coracle/images/debian"
	"github.com/coracle-engine/coracle/images/tree"
)

// Packages names what to ask the archive for: the cloud kernel's newest version for arch.
func Packages(arch string) []string { return []string{"linux-image-cloud-" + arch} }

// IsImage reports whether a package is the kernel itself, with its version in its name.
func IsImage(name string) bool {
	rest, ok := strings.CutPrefix(name, "linux-image-")
	return ok && rest != "" && '0' <= rest[0] && rest[0] <= '9'
}

// Kernel is what an image takes from one kernel package.
type Kernel struct {
	Release string // uname -r
	Image   tree.Content
	ELF     *tree.Content // the same, unpacked, for hypervisors that start it by its PVH entry; amd64 only
	Modules []Module      // in loading order
	builtin tree.Content
}

// Load reads the kernel package p for arch. cache keeps decompressed modules.
func Load(ctx context.Context, p *debian.Package, arch, cache string) (*Kernel, error) {
	k := &Kernel{}
	for _, file := range p.Files() {
		if release, ok := strings.CutPrefix(file, "boot/vmlinuz-"); ok {
			k.Release = release
		}
	}
	image, ok := p.Nodes["boot/vmlinuz-"+k.Release]
	builtin, ok2 := p.Nodes[dir(k.Release)+"/modules.builtin"]
	if !ok || !ok2 {
		return nil, fmt.Errorf("read kernel package %s: it has no boot/vmlinuz or no modules.builtin", p.Name)
	}
	k.builtin = builtin.Content
	var err error
	if k.Image, k.ELF, err = bootable(image.Content, arch); err != nil {
		return nil, fmt.Errorf("unpack %s's kernel: %w", p.Name, err)
	}
	names, err := k.builtin.ReadAll()
	if err != nil {
		return nil, err
	}
	s := newStore(p, k.Release, cache)
	if k.Modules, err = resolve(wanted, arch, builtins(names), func(name string) (Module, error) { return s.load(ctx, name) }); err != nil {
		return nil, fmt.Errorf("resolve modules of kernel %s: %w", k.Release, err)
	}
	return k, nil
}

// dir is where the modules of a kernel lie, in the package and in the guest.
func dir(release string) string { return "usr/lib/modules/" + release }

// Install puts the modules up to class last into t, and the files that describe them. prefix is "" in the root, where
// /lib leads to /usr/lib, and the initramfs is laid out alike.
func (k *Kernel) Install(t *tree.Tree, last Class) error {
	var list, alias bytes.Buffer
	fmt.Fprintf(&list, "# %s: name, class, path, what it needs (images/kernel)\n", k.Release)
	fmt.Fprintf(&alias, "# %s: aliases of the modules that are here\n", k.Release)
	for _, m := range k.Modules {
		if m.Class > last {
			continue
		}
		if err := t.File(dir(k.Release)+"/"+m.Path, 0o644, m.Content); err != nil {
			return err
		}
		fields := append([]string{m.Name, m.Class.String(), "/lib/modules/" + k.Release + "/" + m.Path}, m.Needs...)
		fmt.Fprintln(&list, strings.Join(fields, " "))
		for _, a := range m.aliases {
			fmt.Fprintf(&alias, "alias %s %s\n", a, m.Name)
		}
	}
	if err := t.File(dir(k.Release)+"/modules.coracle", 0o644, tree.Bytes(list.Bytes())); err != nil {
		return err
	}
	if last < Demand {
		return nil
	}
	if err := t.File(dir(k.Release)+"/modules.alias", 0o644, tree.Bytes(alias.Bytes())); err != nil {
		return err
	}
	return t.File(dir(k.Release)+"/modules.builtin", 0o644, k.builtin)
}

// builtins reads modules.builtin: a path per line.
func builtins(data []byte) map[string]bool {
	out := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		if name := moduleName(strings.TrimSpace(line)); name != "" {
			out[name] = true
		}
	}
	return out
}

// moduleName is the name of the module in a file: without directory and suffixes, with underscores.
func moduleName(file string) string {
	base, _, ok := strings.Cut(path.Base(file), ".ko")
	if !ok {
		return ""
	}
	return strings.ReplaceAll(base, "-", "_")
}

// Names lists the modules of one class, for a report.
func (k *Kernel) Names(c Class) []string {
	var out []string
	for _, m := range k.Modules {
		if m.Class == c {
			out = append(out, m.Name)
		}
	}
	slices.Sort(out)
	return out
}
