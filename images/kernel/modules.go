package kernel

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coracle-engine/coracle/images/debian"
	"github.com/coracle-engine/coracle/images/tree"
)

// Module is one module of an image.
type Module struct {
	Name    string
	Class   Class
	Path    string // below the kernel's module directory
	Needs   []string
	Content tree.Content
	depends []string // what it can't be loaded without
	soft    []string // what should be loaded before it, by module name or by alias
	aliases []string
}

// errNoModule says that a kernel has no module of a name.
var errNoModule = errors.New("no such module")

// resolve loads what list names for arch, and what that needs, and returns it in loading order: list's, dependencies first.
func resolve(list []want, arch string, builtin map[string]bool, load func(string) (Module, error)) ([]Module, error) {
	r := resolver{builtin: builtin, load: load, have: map[string]*Module{}}
	for _, w := range list {
		if w.only != "" && w.only != arch {
			continue
		}
		for name := range strings.FieldsSeq(w.names) {
			if _, err := r.visit(name, w.class, nil); err != nil {
				return nil, fmt.Errorf("%w (wanted for: %s)", err, w.why)
			}
		}
	}
	out := make([]Module, len(r.order))
	for i, m := range r.order {
		out[i] = *m
	}
	return out, nil
}

type resolver struct {
	builtin map[string]bool
	load    func(string) (Module, error)
	have    map[string]*Module
	order   []*Module
}

// visit puts name and what it needs into the order, at least as strong as class, and returns all of them but what is built
// in. path is how it came here.
func (r *resolver) visit(name string, class Class, path []string) ([]string, error) {
	if r.builtin[name] {
		return nil, nil
	}
	if slices.Contains(path, name) {
		return nil, fmt.Errorf("module %s needs itself, by way of %s", name, strings.Join(path, ", "))
	}
	path = append(slices.Clone(path), name)
	m, seen := r.have[name]
	if !seen {
		loaded, err := r.load(name)
		if err != nil {
			return nil, fmt.Errorf("module %s: %w", name, err)
		}
		m = &loaded
		m.Class = class
	}
	m.Class = min(m.Class, class)
	needs := map[string]bool{}
	for i, dep := range slices.Concat(m.depends, m.soft) {
		all, err := r.visit(dep, m.Class, path)
		if i >= len(m.depends) && errors.Is(err, errNoModule) {
			continue // an alias ("crypto-sha256"), or something that this kernel has not: it was only a wish
		}
		if err != nil {
			return nil, err
		}
		for _, n := range all {
			needs[n] = true
		}
	}
	if !seen {
		r.have[name] = m
		r.order = append(r.order, m)
	}
	m.Needs = m.Needs[:0]
	for _, o := range r.order { // in loading order
		if needs[o.Name] {
			m.Needs = append(m.Needs, o.Name)
		}
	}
	return append(slices.Clone(m.Needs), name), nil
}

// store finds a kernel package's modules and keeps them decompressed.
type store struct {
	pkg    *debian.Package
	prefix string
	files  map[string]string // module name to the package's file
	cache  string
}

func newStore(p *debian.Package, release, cache string) *store {
	s := &store{pkg: p, prefix: dir(release) + "/", files: map[string]string{}, cache: filepath.Join(cache, "modules", p.SHA256)}
	for _, file := range p.Files() {
		if name := moduleName(file); name != "" && strings.HasPrefix(file, s.prefix) {
			s.files[name] = file
		}
	}
	return s
}

func (s *store) load(ctx context.Context, name string) (Module, error) {
	file, ok := s.files[name]
	if !ok {
		return Module{}, errNoModule
	}
	plain, compressed := strings.CutSuffix(file, ".xz")
	data, err := s.read(ctx, file, compressed)
	if err != nil {
		return Module{}, err
	}
	m := Module{Name: name, Path: strings.TrimPrefix(plain, s.prefix), Content: tree.Bytes(data)}
	if err := m.parse(data); err != nil {
		return m, fmt.Errorf("read %s: %w", file, err)
	}
	return m, nil
}

func (s *store) read(ctx context.Context, file string, compressed bool) ([]byte, error) {
	n := s.pkg.Nodes[file]
	if !compressed {
		return n.Content.ReadAll()
	}
	kept := filepath.Join(s.cache, filepath.Base(file))
	if data, err := os.ReadFile(kept); err == nil {
		return data, nil
	}
	in, err := n.Content.Open()
	if err != nil {
		return nil, err
	}
	defer in.Close()
	cmd := exec.CommandContext(ctx, "xz", "-dc")
	cmd.Stdin, cmd.Stderr = in, os.Stderr
	data, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("decompress %s (with xz, of the package xz-utils): %w", file, err)
	}
	if err := os.MkdirAll(s.cache, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(kept+".part", data, 0o644); err != nil {
		return nil, err
	}
	return data, os.Rename(kept+".part", kept)
}

// parse reads what a module says about itself: the section .modinfo holds NAME=VALUE strings, each ended by a zero byte.
func (m *Module) parse(data []byte) error {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return fmt.Errorf("it has no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return err
	}
	for entry := range strings.SplitSeq(string(info), "\x00") {
		name, value, _ := strings.Cut(entry, "=")
		switch name {
		case "depends":
			m.depends = append(m.depends, moduleNames(strings.Split(value, ","))...)
		case "softdep":
			if pre, ok := strings.CutPrefix(value, "pre: "); ok {
				m.soft = append(m.soft, moduleNames(strings.Fields(pre))...)
			}
		case "alias":
			m.aliases = append(m.aliases, value)
		}
	}
	return nil
}

func moduleNames(in []string) []string {
	var out []string
	for _, s := range in {
		if s != "" {
			out = append(out, strings.ReplaceAll(s, "-", "_"))
		}
	}
	return out
}
