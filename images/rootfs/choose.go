package rootfs

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/coracle-engine/coracle/images/debian"
	"github.com/coracle-engine/coracle/images/kernel"
	"github.com/coracle-engine/coracle/images/tree"
)

// chooser picks files out of packages.
type chooser struct {
	root   *Root
	byName map[string]*debian.Package
	used   map[string]bool
	soname map[string]library // where each library lies, by the name that programs ask for
}

type library struct {
	pkg  *debian.Package
	file string
}

// choose takes what takes names, the libraries that it needs, the certificates, and the copyright of all packages used.
func (c *chooser) choose(packages []*debian.Package) error {
	for _, p := range packages {
		c.byName[p.Name] = p
		for _, file := range p.Files() {
			if dir := path.Dir(file); strings.Contains(path.Base(file), ".so") && (path.Dir(dir) == "usr/lib" || dir == "usr/lib64") {
				c.soname[path.Base(file)] = library{p, file}
			}
		}
	}
	for _, t := range takes {
		if err := c.take(t); err != nil {
			return fmt.Errorf("take from %s (%s): %w", t.pkg, t.why, err)
		}
	}
	if err := c.certificates(); err != nil {
		return err
	}
	for _, p := range packages {
		if c.used[p.Name] || kernel.IsImage(p.Name) {
			c.root.Used = append(c.root.Used, p)
			if err := c.copyright(p.Name, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *chooser) take(t take) error {
	p, ok := c.byName[t.pkg]
	if !ok {
		return fmt.Errorf("the package was not resolved")
	}
	for glob := range strings.FieldsSeq(t.files) {
		found := false
		for _, file := range p.Files() {
			if match(glob, file) {
				found = true
				if err := c.add(p, file); err != nil {
					return err
				}
			}
		}
		if !found {
			return fmt.Errorf("nothing matches %s", glob)
		}
	}
	return nil
}

// add takes one file, and whatever it is linked with.
func (c *chooser) add(p *debian.Package, file string) error {
	if _, ok := c.root.Get(file); ok {
		return nil
	}
	n, ok := p.Nodes[file]
	if !ok {
		return fmt.Errorf("%s has no %s", p.Name, file)
	}
	c.used[p.Name] = true
	if n.Mode&fs.ModeSymlink != 0 {
		if err := c.root.Link(file, n.Target); err != nil {
			return err
		}
		if target := debian.Merged(path.Join(path.Dir(file), n.Target)); !path.IsAbs(n.Target) {
			if _, ok := p.Nodes[target]; ok {
				return c.add(p, target)
			}
		}
		return nil
	}
	if err := c.root.File(file, n.Mode, n.Content); err != nil {
		return err
	}
	needs, loader, err := linked(n.Content)
	if err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if loader != "" {
		if err := c.loader(loader); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	for _, name := range needs {
		l, ok := c.soname[name]
		if !ok {
			return fmt.Errorf("%s is linked with %s, which no package has (is it skipped?)", file, name)
		}
		if err := c.add(l.pkg, l.file); err != nil {
			return err
		}
	}
	return nil
}

// loader adds a program's loader by its very path, which need not be among the libraries: on arm64 it is a link to there.
func (c *chooser) loader(name string) error {
	file := debian.Merged(strings.TrimPrefix(name, "/"))
	for _, p := range c.byName {
		if _, ok := p.Nodes[file]; ok {
			return c.add(p, file)
		}
	}
	return fmt.Errorf("no package has its loader %s", name)
}

// linked returns the libraries that c asks for, and the path of its loader, if it is a program or a library at all.
func linked(c tree.Content) (needs []string, loader string, err error) {
	r, err := c.Open()
	if err != nil {
		return nil, "", err
	}
	head := make([]byte, 4)
	n, _ := r.Read(head)
	r.Close()
	if n < 4 || string(head) != elf.ELFMAG {
		return nil, "", nil
	}
	data, err := c.ReadAll()
	if err != nil {
		return nil, "", err
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, "", err
	}
	if needs, err = f.ImportedLibraries(); err != nil {
		return nil, "", err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && int(p.Filesz) < len(data) {
			name := make([]byte, p.Filesz)
			if _, err := p.ReadAt(name, 0); err != nil {
				return nil, "", err
			}
			loader = strings.TrimRight(string(name), "\x00")
		}
	}
	return needs, loader, nil
}

// certificates joins Mozilla's roots into the one file that Go, curl and git read, as update-ca-certificates would.
func (c *chooser) certificates() error {
	p, ok := c.byName["ca-certificates"]
	if !ok {
		return fmt.Errorf("package ca-certificates was not resolved")
	}
	var bundle bytes.Buffer
	for _, file := range p.Files() {
		if !match("usr/share/ca-certificates/mozilla/*.crt", file) {
			continue
		}
		n := p.Nodes[file]
		data, err := n.Content.ReadAll()
		if err != nil {
			return err
		}
		bundle.Write(bytes.TrimSpace(data))
		bundle.WriteByte('\n')
	}
	if bundle.Len() == 0 {
		return fmt.Errorf("package ca-certificates has no certificates where they are expected")
	}
	c.used[p.Name] = true
	return c.root.File("etc/ssl/certs/ca-certificates.crt", 0o644, tree.Bytes(bundle.Bytes()))
}

// copyright takes a package's copyright file, or the link to that of another package of the same source.
func (c *chooser) copyright(name string, depth int) error {
	p, ok := c.byName[name]
	if !ok || depth > 2 {
		return fmt.Errorf("find the copyright of %s: the package is not there", name)
	}
	doc := "usr/share/doc/" + name
	if n, ok := p.Nodes[doc+"/copyright"]; ok {
		if n.Mode&fs.ModeSymlink != 0 {
			if err := c.copyright(path.Base(path.Dir(path.Join(doc, n.Target))), depth+1); err != nil {
				return err
			}
			return c.root.Link(doc+"/copyright", n.Target)
		}
		return c.root.File(doc+"/copyright", 0o644, n.Content)
	}
	if n, ok := p.Nodes[doc]; ok && n.Mode&fs.ModeSymlink != 0 {
		if err := c.root.Link(doc, n.Target); err != nil {
			return err
		}
		return c.copyright(path.Base(n.Target), depth+1)
	}
	return fmt.Errorf("find the copyright of %s: its package has none", name)
}

// Copyright returns the text of p's copyright file as the root has it, or nil.
func (r *Root) Copyright(p *debian.Package) ([]byte, error) {
	name := "usr/share/doc/" + p.Name
	for range 3 {
		n, ok := r.Get(name)
		if !ok {
			n, ok = r.Get(name + "/copyright")
			name += "/copyright"
		}
		switch {
		case !ok:
			return nil, nil
		case n.Mode&fs.ModeSymlink != 0:
			name = path.Join(path.Dir(name), n.Target)
		case n.Mode.IsDir():
			name += "/copyright"
		default:
			return n.Content.ReadAll()
		}
	}
	return nil, nil
}
