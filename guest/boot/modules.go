//go:build linux

package boot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Classes of modules: when each is loaded. The image's list says which module is of which (images/build).
const (
	ClassRoot   = "root"   // needed to find and mount the root
	ClassVsock  = "vsock"  // needed to talk to the host
	ClassBoot   = "boot"   // needed by the services
	ClassLate   = "late"   // needed by containers, which cannot ask for it
	ClassDemand = "demand" // loaded when asked for
)

// Module is one line of the image's module list.
type Module struct {
	Name  string
	Class string
	Path  string
	Deps  []string // all it needs, directly or not
}

// Index is the image's module list, modules.coracle: one module per line, "NAME CLASS PATH [DEP...]", after all it needs.
type Index struct {
	modules []Module
	byName  map[string]int
}

// IndexDir is where the running kernel's modules and their lists are.
func IndexDir() string { return filepath.Join("/lib/modules", Kernel()) }

// ReadIndex reads the list of the running kernel.
func ReadIndex() (*Index, error) {
	f, err := os.Open(filepath.Join(IndexDir(), "modules.coracle"))
	if err != nil {
		return nil, fmt.Errorf("read module list: %w", err)
	}
	defer f.Close()
	return ParseIndex(f)
}

// ParseIndex reads a list and checks that it is in order.
func ParseIndex(r io.Reader) (*Index, error) {
	x := &Index{byName: map[string]int{}}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		f := strings.Fields(lines.Text())
		if len(f) == 0 || strings.HasPrefix(f[0], "#") {
			continue
		}
		if len(f) < 3 {
			return nil, fmt.Errorf("parse module list: line %d has %d fields, want at least 3", n, len(f))
		}
		m := Module{Name: moduleName(f[0]), Class: f[1], Path: f[2], Deps: f[3:]}
		if _, twice := x.byName[m.Name]; twice {
			return nil, fmt.Errorf("parse module list: line %d names %s again", n, m.Name)
		}
		for i, d := range m.Deps {
			m.Deps[i] = moduleName(d)
			if _, ok := x.byName[m.Deps[i]]; !ok {
				return nil, fmt.Errorf("parse module list: line %d: %s needs %s, which is not before it", n, m.Name, d)
			}
		}
		x.byName[m.Name] = len(x.modules)
		x.modules = append(x.modules, m)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("parse module list: %w", err)
	}
	return x, nil
}

// moduleName spells a module's name as /proc/modules does.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// Class returns the names of all modules of a class, in order.
func (x *Index) Class(class string) []string {
	var names []string
	for _, m := range x.modules {
		if m.Class == class {
			names = append(names, m.Name)
		}
	}
	return names
}

// find returns the module called name, or nil.
func (x *Index) find(name string) *Module {
	if i, ok := x.byName[moduleName(name)]; ok {
		return &x.modules[i]
	}
	return nil
}

// Loader loads modules, each once, after those it needs and beside those it does not. Its methods may be called from several
// goroutines.
type Loader struct {
	insert func(path string) error
	slots  chan struct{} // bounds how many are inserted at once

	mu      sync.Mutex
	loading map[string]*loading
}

type loading struct {
	done chan struct{}
	err  error // valid after done
}

// NewLoader makes a loader that inserts a file with insert, at most width at once.
func NewLoader(insert func(path string) error, width int) *Loader {
	return &Loader{insert: insert, slots: make(chan struct{}, width), loading: map[string]*loading{}}
}

// Load loads the named modules of x and all they need, and returns when that is done. What failed does not keep others back.
func (l *Loader) Load(ctx context.Context, x *Index, names ...string) error {
	started := make([]*loading, len(names))
	for i, name := range names {
		m := x.find(name)
		if m == nil {
			return fmt.Errorf("load module %s: the image has none of that name", name)
		}
		started[i] = l.start(x, m)
	}
	var errs []error
	for _, s := range started {
		select {
		case <-s.done:
			errs = append(errs, s.err)
		case <-ctx.Done():
			return fmt.Errorf("load modules: %w", context.Cause(ctx))
		}
	}
	return errors.Join(errs...)
}

// start begins to load m unless that was begun before. The goroutine ends with the insertion, which nothing can cut short.
func (l *Loader) start(x *Index, m *Module) *loading {
	l.mu.Lock()
	s := l.loading[m.Name]
	if s != nil {
		l.mu.Unlock()
		return s
	}
	s = &loading{done: make(chan struct{})}
	l.loading[m.Name] = s
	l.mu.Unlock()
	deps := make([]*loading, len(m.Deps))
	for i, d := range m.Deps {
		deps[i] = l.start(x, x.find(d))
	}
	go func() {
		defer close(s.done)
		for i, d := range deps {
			if <-d.done; d.err != nil {
				s.err = fmt.Errorf("load module %s: it needs %s", m.Name, m.Deps[i])
				return
			}
		}
		l.slots <- struct{}{}
		defer func() { <-l.slots }()
		if err := l.insert(m.Path); err != nil {
			s.err = fmt.Errorf("load module %s: %w", m.Name, err)
		}
	}()
	return s
}

// Insert gives the kernel a module's file. A module that is there already is no error: the kernel may have asked modprobe
// for it at the same moment.
func Insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("insert %s: %w", path, err)
	}
	return nil
}
