//go:build linux

package boot

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Modprobe is what the kernel runs when it wants a module: args are modprobe's, without the program's name. It returns the
// exit status. Options but -a are taken and ignored; with -a all names are modules, else the first alone is.
func Modprobe(ctx context.Context, args []string, stderr io.Writer) int {
	names := modprobeNames(args)
	quiet := len(args) > 0 && args[0] == "-q"
	x, err := ReadIndex()
	if err == nil {
		l := NewLoader(Insert, 1)
		for _, name := range names {
			err = errors.Join(err, probe(ctx, IndexDir(), l, x, name))
		}
	}
	if err == nil {
		return 0
	}
	if !quiet {
		fmt.Fprintln(stderr, "modprobe:", err)
	}
	return 1
}

func modprobeNames(args []string) []string {
	var names []string
	all := false
	for i, a := range args {
		if a == "--" {
			names = append(names, args[i+1:]...)
			break
		}
		if strings.HasPrefix(a, "-") {
			all = all || a == "--all" || !strings.HasPrefix(a, "--") && strings.Contains(a, "a")
			continue
		}
		names = append(names, a)
	}
	if !all && len(names) > 1 {
		names = names[:1] // the rest are the module's parameters
	}
	return names
}

func probe(ctx context.Context, dir string, l *Loader, x *Index, name string) error {
	if x.find(name) != nil {
		return l.Load(ctx, x, name)
	}
	if builtIn(dir, name) {
		return nil
	}
	found, err := aliases(dir, name)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return fmt.Errorf("%s: the image has no such module", name)
	}
	return l.Load(ctx, x, found...)
}

// builtIn says whether the kernel holds the module: modules.builtin has a file name per line.
func builtIn(dir, name string) bool {
	found := false
	_ = eachLine(filepath.Join(dir, "modules.builtin"), func(line string) {
		file := strings.TrimSuffix(path.Base(line), ".ko")
		found = found || moduleName(file) == moduleName(name)
	})
	return found
}

// aliases returns the modules whose alias (modules.alias, "alias PATTERN MODULE" per line) matches name.
func aliases(dir, name string) ([]string, error) {
	var modules []string
	err := eachLine(filepath.Join(dir, "modules.alias"), func(line string) {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "alias" {
			return
		}
		if ok, err := path.Match(aliasPattern(f[1]), aliasPattern(name)); ok && err == nil {
			modules = append(modules, f[2])
		}
	})
	return modules, err
}

// aliasPattern makes a pattern of modules.alias, or a name to match with it, one for path.Match: - and _ are the same
// (outside of ranges), and * matches a slash too.
func aliasPattern(s string) string {
	depth := 0
	return strings.Map(func(r rune) rune {
		switch {
		case r == '[':
			depth++
		case r == ']':
			depth--
		case r == '-' && depth == 0:
			return '_'
		case r == '/':
			return 0
		}
		return r
	}, s)
}

func eachLine(file string, f func(line string)) error {
	r, err := os.Open(file)
	if err != nil {
		return err
	}
	defer r.Close()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f(lines.Text())
	}
	return lines.Err()
}
