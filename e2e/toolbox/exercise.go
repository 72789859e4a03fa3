//go:build linux

package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// model is what a directory must hold: each file's content by its path. Hard links share one content.
type model struct {
	dir   string
	rand  *rand.Rand
	files map[string]*[]byte
	dirs  []string
}

// exercise does so many random operations in a directory, checks each result against a model, and prints the manifest that
// the model says is there at the end. The same seed does the same.
func exercise(args []string) error {
	seed, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return err
	}
	count, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	if err := os.Mkdir(args[0], 0o755); err != nil {
		return err
	}
	m := &model{dir: args[0], rand: rand.New(rand.NewPCG(seed, 1)), files: map[string]*[]byte{}, dirs: []string{""}}
	steps := []func() error{m.create, m.create, m.overwrite, m.append, m.truncate, m.rename, m.link, m.remove, m.mkdir, m.check, m.check}
	for i := range count {
		if err := steps[m.rand.IntN(len(steps))](); err != nil {
			return fmt.Errorf("operation %d: %w", i, err)
		}
	}
	want := m.manifest()
	got, err := manifest(m.dir)
	if err != nil {
		return err
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("the directory holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	fmt.Println(strings.Join(want, "\n"))
	return nil
}

func (m *model) manifest() []string {
	var lines []string
	for _, d := range m.dirs[1:] {
		lines = append(lines, fmt.Sprintf("%q dir", d))
	}
	for path, content := range m.files {
		lines = append(lines, fmt.Sprintf("%q %d %x", path, len(*content), sha256.Sum256(*content)))
	}
	slices.Sort(lines)
	return lines
}

func (m *model) path(rel string) string { return filepath.Join(m.dir, rel) }

// name is a path in a random directory: of a new file, or by chance of one that is there.
func (m *model) name() string {
	return filepath.Join(m.dirs[m.rand.IntN(len(m.dirs))], "f"+strconv.Itoa(m.rand.IntN(60)))
}

// some is a file that is there; "" where there is none.
func (m *model) some() string {
	if len(m.files) == 0 {
		return ""
	}
	return slices.Sorted(maps.Keys(m.files))[m.rand.IntN(len(m.files))]
}

func (m *model) bytes() []byte {
	b := make([]byte, m.rand.IntN([]int{10, 5000, 200000}[m.rand.IntN(3)]))
	for i := range b {
		b[i] = byte(m.rand.Uint32())
	}
	return b
}

// create makes a file anew, under a new name moved into its place, as editors save.
func (m *model) create() error {
	name, content := m.name(), m.bytes()
	tmp := m.path(name) + "~"
	if err := os.WriteFile(tmp, content, 0o644); err != nil {
		return err
	}
	m.files[name] = &content
	return os.Rename(tmp, m.path(name))
}

func (m *model) edit(flags int, change func(f *os.File, content []byte) ([]byte, error)) error {
	name := m.some()
	if name == "" {
		return nil
	}
	f, err := os.OpenFile(m.path(name), flags, 0)
	if err != nil {
		return err
	}
	content, err := change(f, *m.files[name])
	*m.files[name] = content
	return errors.Join(err, f.Close())
}

func (m *model) overwrite() error {
	return m.edit(os.O_RDWR, func(f *os.File, old []byte) ([]byte, error) {
		at, b := m.rand.IntN(len(old)+1), m.bytes()
		content := append(slices.Clone(old), make([]byte, max(0, at+len(b)-len(old)))...)
		copy(content[at:], b)
		_, err := f.WriteAt(b, int64(at))
		return content, err
	})
}

func (m *model) append() error {
	return m.edit(os.O_WRONLY|os.O_APPEND, func(f *os.File, old []byte) ([]byte, error) {
		b := m.bytes()
		_, err := f.Write(b)
		return append(slices.Clone(old), b...), err
	})
}

func (m *model) truncate() error {
	return m.edit(os.O_RDWR, func(f *os.File, old []byte) ([]byte, error) {
		n := m.rand.IntN(2*len(old) + 1)
		content := make([]byte, n)
		copy(content, old)
		return content, f.Truncate(int64(n))
	})
}

func (m *model) rename() error {
	from, to := m.some(), m.name()
	if from == "" || from == to || m.files[from] == m.files[to] { // two names of one file: rename does nothing
		return nil
	}
	m.files[to] = m.files[from]
	delete(m.files, from)
	return os.Rename(m.path(from), m.path(to))
}

func (m *model) link() error {
	from, to := m.some(), m.name()
	if from == "" || m.files[to] != nil {
		return nil
	}
	m.files[to] = m.files[from]
	return os.Link(m.path(from), m.path(to))
}

func (m *model) remove() error {
	name := m.some()
	if name == "" {
		return nil
	}
	delete(m.files, name)
	return os.Remove(m.path(name))
}

func (m *model) mkdir() error {
	if len(m.dirs) > 20 {
		return nil
	}
	name := filepath.Join(m.dirs[m.rand.IntN(len(m.dirs))], "d"+strconv.Itoa(len(m.dirs)))
	m.dirs = append(m.dirs, name)
	return os.Mkdir(m.path(name), 0o755)
}

func (m *model) check() error {
	name := m.some()
	if name == "" {
		return nil
	}
	got, err := os.ReadFile(m.path(name))
	if err != nil {
		return err
	}
	if want := *m.files[name]; !slices.Equal(got, want) {
		return fmt.Errorf("%s holds %d bytes (%x), want %d (%x)", name, len(got), sha256.Sum256(got), len(want), sha256.Sum256(want))
	}
	st, err := os.Stat(m.path(name))
	if err == nil && st.Size() != int64(len(got)) {
		err = fmt.Errorf("%s has %d bytes, its attributes say %d", name, len(got), st.Size())
	}
	return err
}
