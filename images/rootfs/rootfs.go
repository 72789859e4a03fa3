// Package rootfs lays out the guest's read-only root and its initramfs: the engine's programs and our guest, chosen files
// of Debian's packages (want.go says which, and why) with the libraries that they are linked with, and the links, mount
// points and small files that make a system of them.
package rootfs

import (
	"bytes"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/coracle-engine/coracle/images/debian"
	"github.com/coracle-engine/coracle/images/kernel"
	"github.com/coracle-engine/coracle/images/program"
	"github.com/coracle-engine/coracle/images/tree"
)

// guestPath is where the root has our guest.
const guestPath = "usr/lib/coracle/coracle-guest"

// Skip reports whether a package that the wanted ones depend on needs no download.
func Skip(name string) bool {
	return slices.ContainsFunc(skipped, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) &&
		!slices.Contains(Packages(), name)
}

// Root is the root file system as it is laid out, and the packages that are in it.
type Root struct {
	tree.Tree
	Used []*debian.Package
}

// Build lays out the root, but for what depends on the image's version (see Release).
func Build(packages []*debian.Package, k *kernel.Kernel, engine []*program.Program, guest *program.Program, licences []byte) (*Root, error) {
	r := &Root{}
	c := chooser{root: r, byName: map[string]*debian.Package{}, used: map[string]bool{}, soname: map[string]library{}}
	steps := []struct {
		what string
		do   func() error
	}{
		{"choose files", func() error { return c.choose(packages) }},
		{"install programs", func() error { return r.programs(engine, guest, licences) }},
		{"install modules", func() error { return k.Install(&r.Tree, kernel.Demand) }},
		{"lay out", r.layout},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return nil, fmt.Errorf("%s of the root: %w", s.what, err)
		}
	}
	return r, nil
}

func (r *Root) programs(engine []*program.Program, guest *program.Program, licences []byte) error {
	for _, p := range engine {
		if err := r.File("usr/bin/"+p.Name, 0o755, p.Content); err != nil {
			return err
		}
		for _, l := range p.Static {
			if len(l.Copyright) == 0 {
				continue
			}
			if err := r.File("usr/share/doc/coracle/"+l.Name+".copyright", 0o644, tree.Bytes(l.Copyright)); err != nil {
				return err
			}
		}
	}
	if err := r.File("usr/share/doc/coracle/go-licences.txt", 0o644, tree.Bytes(licences)); err != nil {
		return err
	}
	return r.File(guestPath, 0o755, guest.Content)
}

// layout adds what no package brings.
func (r *Root) layout() error {
	for _, dir := range mountPoints {
		if err := r.Dir(dir, modes[dir]); err != nil {
			return err
		}
	}
	if err := r.Dir("usr/share/git-core/templates/branches", 0o755); err != nil {
		return err
	}
	for name, target := range links {
		if err := r.Link(name, target); err != nil {
			return err
		}
	}
	if _, ok := r.Get("usr/lib64"); ok {
		if err := r.Link("lib64", "usr/lib64"); err != nil {
			return err
		}
	}
	for dir, names := range applets {
		for name := range strings.FieldsSeq(names) {
			target := "busybox"
			if dir != "usr/bin" {
				target = "../bin/busybox"
			}
			if err := r.Link(dir+"/"+name, target); err != nil {
				return err
			}
		}
	}
	for name, text := range files {
		if err := r.File(name, 0o644, tree.Bytes([]byte(text))); err != nil {
			return err
		}
	}
	return nil
}

// modes gives mount points their mode before anything is mounted there.
var modes = func() map[string]fs.FileMode {
	m := map[string]fs.FileMode{}
	for _, dir := range mountPoints {
		m[dir] = 0o755
	}
	m["tmp"], m["root"] = 0o777|fs.ModeSticky, 0o700
	return m
}()

// DockerGroup owns dockerd's socket in the guest.
const DockerGroup = 991

var files = map[string]string{
	"etc/passwd": "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	"etc/group":  fmt.Sprintf("root:x:0:\ntty:x:5:\ndisk:x:6:\ndocker:x:%d:\nnogroup:x:65534:\n", DockerGroup),
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n" +
		"protocols: files\nservices: files\n",
	"etc/shells":     "/bin/sh\n/bin/bash\n",
	"etc/profile":    "PATH=/usr/sbin:/usr/bin:/sbin:/bin\nexport PATH\n[ \"$PS1\" ] && PS1='\\u@\\h:\\w# '\numask 022\n",
	"etc/host.conf":  "multi on\n",
	"etc/gitconfig":  "[advice]\n\tdetachedHead = false\n",
	"etc/issue":      "Coracle\n",
	"etc/securetty":  "",
	"etc/ld.so.conf": "# the loader's own directories are enough: all libraries lie there\n",
}

// Release adds the files that name the image's version.
func (r *Root) Release(version string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "NAME=Coracle\nPRETTY_NAME=\"Coracle %s\"\nID=coracle\nID_LIKE=debian\nVERSION_ID=%q\nIMAGE_ID=coracle\nIMAGE_VERSION=%q\n",
		version, version, version)
	return r.File("usr/lib/os-release", 0o644, tree.Bytes(b.Bytes()))
}

// Initramfs lays out what the kernel unpacks: our guest as /init, the modules that the root and the host are reached with,
// and directories to mount on.
func Initramfs(k *kernel.Kernel, guest *program.Program) (*tree.Tree, error) {
	t := &tree.Tree{}
	for _, dir := range []string{"dev", "proc", "sys", "run", "tmp", "root", "sysroot"} {
		if err := t.Dir(dir, 0o755); err != nil {
			return nil, err
		}
	}
	if err := t.Char("dev/console", 0o600, 5, 1); err != nil {
		return nil, err
	}
	if err := t.File("init", 0o755, guest.Content); err != nil {
		return nil, err
	}
	if err := t.Link("lib", "usr/lib"); err != nil {
		return nil, err
	}
	return t, k.Install(t, kernel.Vsock)
}

// match reports whether glob (see take) matches name.
func match(glob, name string) bool {
	if dir, ok := strings.CutSuffix(glob, "/**"); ok {
		return strings.HasPrefix(name, dir+"/")
	}
	ok, err := path.Match(glob, name)
	return ok && err == nil
}
