package rootfs

import (
	"io/fs"
	"path"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/images/debian"
	"github.com/coracle-engine/coracle/images/elftest"
	"github.com/coracle-engine/coracle/images/kernel"
	"github.com/coracle-engine/coracle/images/program"
	"github.com/coracle-engine/coracle/images/tree"
)

// world has a package for every take, each file of it a plain one, so that the real list can be laid out.
func world() map[string]*debian.Package {
	all := map[string]*debian.Package{}
	for _, t := range takes {
		for glob := range strings.FieldsSeq(t.files) {
			add(all, t.pkg, strings.NewReplacer("/**", "/some/file", "usr/lib/*", "usr/lib/TRIPLET", "*", "some").Replace(glob), "plain")
		}
	}
	add(all, "ca-certificates", "usr/share/ca-certificates/mozilla/B.crt", "bbb\n")
	add(all, "ca-certificates", "usr/share/ca-certificates/mozilla/A.crt", "aaa")
	add(all, "unused", "usr/bin/unused", "x")
	return all
}

func add(all map[string]*debian.Package, pkg, file, data string) {
	p := all[pkg]
	if p == nil {
		p = &debian.Package{Locked: debian.Locked{Name: pkg}, Nodes: map[string]tree.Node{}}
		p.Nodes["usr/share/doc/"+pkg+"/copyright"] = text("copyright of " + pkg)
		all[pkg] = p
	}
	p.Nodes[file] = text(data)
}

func text(data string) tree.Node { return tree.Node{Mode: 0o644, Content: tree.Bytes([]byte(data))} }

func link(target string) tree.Node { return tree.Node{Mode: fs.ModeSymlink | 0o777, Target: target} }

func list(all map[string]*debian.Package) []*debian.Package {
	var out []*debian.Package
	for _, p := range all {
		out = append(out, p)
	}
	return out
}

func build(all map[string]*debian.Package) (*Root, error) {
	p := func(name string) *program.Program {
		return &program.Program{Name: name, Content: tree.Bytes([]byte(name))}
	}
	return Build(list(all), &kernel.Kernel{Release: "6.1-x"}, []*program.Program{p("dockerd")}, p("guest"), []byte("licences"))
}

func content(t *testing.T, r *Root, name string) string {
	t.Helper()
	n, ok := r.Get(name)
	if !ok {
		return "missing"
	}
	data, err := n.Content.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestBuild lays out the whole root. The kernel has no modules.builtin here, so its own content can't be read.
func TestBuild(t *testing.T) {
	all := world()
	all["iptables"].Nodes["usr/sbin/xtables-nft-multi"] = text(string(elftest.Linked("/lib64/ld.so.2", "libx.so.1")))
	add(all, "libx1", "usr/lib/TRIPLET/libx.so.1.2", string(elftest.Linked("/lib/ld-other.so.1", "libc.so.6"))) // arm64's is such a link
	all["libc6"].Nodes["usr/lib/TRIPLET/ld-other.so.1"] = text("another loader")
	all["libc6"].Nodes["usr/lib/ld-other.so.1"] = link("TRIPLET/ld-other.so.1")
	all["libx1"].Nodes["usr/lib/TRIPLET/libx.so.1"] = link("libx.so.1.2")
	delete(all["libx1"].Nodes, "usr/share/doc/libx1/copyright")
	all["libx1"].Nodes["usr/share/doc/libx1"] = link("libx-common")
	add(all, "libx-common", "usr/share/x", "x")
	all["libc6"].Nodes["usr/lib/TRIPLET/libc.so.6"] = text(string(elftest.Linked("")))
	all["libc6"].Nodes["usr/lib/TRIPLET/ld.so.2"] = text("loader")
	all["libc6"].Nodes["usr/lib64/ld.so.2"] = link("../lib/TRIPLET/ld.so.2")

	r, err := build(all)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Release("1.2+abc"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/lib/TRIPLET/libx.so.1", "usr/lib/TRIPLET/libx.so.1.2", "usr/lib/TRIPLET/libc.so.6",
		"usr/lib64/ld.so.2", "lib64", "usr/lib/ld-other.so.1", "usr/lib/TRIPLET/ld-other.so.1", "usr/sbin/iptables", "usr/bin/sh", "usr/sbin/ip", "usr/sbin/modprobe", "data",
		"usr/share/doc/libx1", "usr/share/doc/libx-common/copyright"} {
		if _, ok := r.Get(name); !ok {
			t.Errorf("the root has no %s", name)
		}
	}
	for name, want := range map[string]string{
		"etc/ssl/certs/ca-certificates.crt":       "aaa\nbbb\n",
		"usr/lib/coracle/coracle-guest":           "guest",
		"usr/bin/dockerd":                         "dockerd",
		"usr/share/doc/coracle/go-licences.txt":   "licences",
		"usr/share/doc/iptables/copyright":        "copyright of iptables",
		"usr/bin/unused":                          "missing",
		"usr/share/doc/unused/copyright":          "missing",
		"usr/share/ca-certificates/mozilla/A.crt": "missing",
	} {
		if got := content(t, r, name); got != want {
			t.Errorf("%s is %q: want %q", name, got, want)
		}
	}
	if got := content(t, r, "usr/lib/os-release"); !strings.Contains(got, "PRETTY_NAME=\"Coracle 1.2+abc\"\nID=coracle\nID_LIKE=debian\n") {
		t.Errorf("os-release is %q", got)
	}
	if n, _ := r.Get("tmp"); n.Mode != fs.ModeDir|fs.ModeSticky|0o777 {
		t.Errorf("tmp has mode %v", n.Mode)
	}
	checkLinks(t, r)
}

// checkLinks finds links that lead nowhere, but for those into what the guest mounts.
func checkLinks(t *testing.T, r *Root) {
	t.Helper()
	for _, name := range r.Names() {
		n, _ := r.Get(name)
		if n.Mode&fs.ModeSymlink == 0 {
			continue
		}
		target := path.Join(path.Dir(name), n.Target)
		_, ok := r.Get(target)
		mounted := strings.HasPrefix(target, "run/") || strings.HasPrefix(target, "proc/") || strings.HasPrefix(target, "usr/share/zoneinfo/")
		if !ok && !mounted && !strings.Contains(name, "doc/") {
			t.Errorf("%s leads to %s, which is not there", name, target)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(map[string]*debian.Package)
		want   string
	}{
		{"a package is missing", func(all map[string]*debian.Package) { delete(all, "tini") }, "take from tini (docker run --init): the package was not resolved"},
		{"a file is missing", func(all map[string]*debian.Package) { delete(all["git"].Nodes, "usr/bin/git") }, "nothing matches usr/bin/git"},
		{"a library is missing", func(all map[string]*debian.Package) {
			all["bash"].Nodes["usr/bin/bash"] = text(string(elftest.Linked("", "libgone.so.9")))
		}, "usr/bin/bash is linked with libgone.so.9, which no package has"},
		{"a copyright is missing", func(all map[string]*debian.Package) {
			delete(all["bash"].Nodes, "usr/share/doc/bash/copyright")
		}, "find the copyright of bash"},
		{"no certificates", func(all map[string]*debian.Package) {
			all["ca-certificates"].Nodes = map[string]tree.Node{"x": text("x")}
		}, "has no certificates"},
		{"a damaged program", func(all map[string]*debian.Package) {
			all["bash"].Nodes["usr/bin/bash"] = text("\x7fELF\x00\x00")
		}, "read usr/bin/bash"},
		{"a package covers ours", func(all map[string]*debian.Package) {
			all["base-files"].Nodes["usr/share/common-licenses/some"] = text("1")
			all["tzdata"].Nodes["usr/share/zoneinfo/x"] = text("2")
			all["xz-utils"].Nodes["usr/bin/xz"] = link("/elsewhere")
			all["tini"].Nodes["usr/bin/tini-static"] = text("3")
			all["procps"].Nodes["usr/bin/ps"] = link("dockerd")
			all["procps"].Nodes["usr/bin/dockerd"] = text("not ours")
		}, "usr/bin/dockerd to the tree: something else is there"},
	} {
		t.Run(test.name, func(t *testing.T) {
			all := world()
			test.change(all)
			if _, err := build(all); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v: want one with %q", err, test.want)
			}
		})
	}
}

func TestInitramfs(t *testing.T) {
	tr, err := Initramfs(&kernel.Kernel{Release: "6.1-x"}, &program.Program{Content: tree.Bytes([]byte("guest"))})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"dev", "dev/console", "init", "lib", "proc", "root", "run", "sys", "sysroot", "tmp", "usr", "usr/lib",
		"usr/lib/modules", "usr/lib/modules/6.1-x", "usr/lib/modules/6.1-x/modules.coracle"}
	if diff := cmp.Diff(want, tr.Names()); diff != "" {
		t.Errorf("initramfs (-want +got):\n%s", diff)
	}
	if n, _ := tr.Get("init"); n.Mode != 0o755 {
		t.Errorf("init has mode %v", n.Mode)
	}
}

func TestSkip(t *testing.T) {
	for name, want := range map[string]bool{
		"perl-modules-5.40": true, "libperl5.40": true, "systemd": true, "libsystemd-shared": true, "libsystemd0": false,
		"openssl": true, "libssl3t64": false, "git": false, "git-man": true, "tar": true, "libc6": false, "bash": false,
	} {
		if got := Skip(name); got != want {
			t.Errorf("Skip(%s) is %v", name, got)
		}
	}
}

func TestMatch(t *testing.T) {
	for _, test := range []struct {
		glob, name string
		want       bool
	}{
		{"usr/bin/x", "usr/bin/x", true}, {"usr/bin/x", "usr/bin/xy", false}, {"usr/*/x", "usr/a/x", true},
		{"usr/*/x", "usr/a/b/x", false}, {"usr/z/**", "usr/z/a/b", true}, {"usr/z/**", "usr/zz", false}, {"[", "[", false},
	} {
		if got := match(test.glob, test.name); got != test.want {
			t.Errorf("match(%s, %s) is %v", test.glob, test.name, got)
		}
	}
}

func TestApplets(t *testing.T) {
	seen := map[string]bool{}
	for _, names := range applets {
		for name := range strings.FieldsSeq(names) {
			if seen[name] {
				t.Errorf("applet %s is listed twice", name)
			}
			seen[name] = true
		}
	}
	for _, name := range []string{"sh", "ls", "cat", "ip", "mount", "umount", "tar", "ping"} {
		if !seen[name] {
			t.Errorf("no applet %s", name)
		}
	}
}
