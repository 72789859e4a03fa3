// Package coracle holds no code: its tests are the house rules, that is which room may import which, and how large a thing
// may grow before it no longer fits in a head.
package coracle

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/coracle-engine/coracle/"

// arrows says, for each room, which other rooms it may import. A pattern ending in /* means the rooms below it. A room that
// is not listed fails the test: say what it may know before it exists.
var arrows = map[string][]string{
	"cmd/coracle":         {"host/api", "host/paths"},
	"cmd/coracled":        {"host/*", "guest/api", "vm", "vm/drivers"},
	"cmd/coracle-guest":   {"guest/*"},
	"vm":                  {},
	"vm/qemu":             {"vm", "vm/vhostuser", "vm/vhostuser/vsock", "vm/vhostuser/fs"},
	"vm/drivers":          {"vm", "vm/qemu"},
	"vm/vhostuser":        {"vm"},
	"vm/vhostuser/vsock":  {"vm", "vm/vhostuser"},
	"vm/vhostuser/fs":     {"vm", "vm/vhostuser"},
	"vm/vhostuser/*":      {"vm", "vm/vhostuser", "vm/vhostuser/*"},
	"vm/vmtest":           {"vm"},
	"vm/vmtest/testguest": {"vm/vmtest", "guest/api", "guest/share", "guest/watch"}, // a real guest's parts, for measurements
	"guest/api":           {},
	"guest/boot":          {"guest/api"},
	"guest/service":       {"guest/api"},
	"guest/engine":        {"guest/api", "guest/service"},
	"guest/relay":         {"guest/api"},
	"guest/net":           {"guest/api"},
	"guest/clock":         {"guest/api"},
	"guest/share":         {"guest/api"},
	"guest/watch":         {"guest/api", "guest/relay"},
	"guest/agent":         {"guest/*"},
	"host/api":            {"host/socket", "host/paths", "guest/api"},
	"host/server":         {"host/api"},
	"host/machine":        {"vm", "guest/api", "host/api"},
	"host/dockerproxy":    {},
	"host/share":          {"guest/api", "host/share/*"},
	"host/share/*":        {},
	"host/network":        {"guest/api"},
	"host/forward":        {"guest/api"},
	"host/sshagent":       {"guest/api"},
	"host/wake":           {},
	"host/image":          {"images/manifest", "guest/api", "host/api"},
	"host/socket":         {},
	"host/lock":           {},
	"host/paths":          {},
	"host/config":         {"host/api"},
	"host/integrate":      {"host/paths"},
	"host/diagnose":       {"host/api", "host/paths", "vm"},
	"images/manifest":     {},
	"images/*":            {"images/*"},
	"packaging/build":     {},
	"packaging/demo":      {},
	"e2e":                 {"guest/api", "host/api", "host/paths", "images/manifest", "vm", "vm/qemu"},
	"e2e/toolbox":         {},
}

// libraries says which rooms may import which libraries; those not listed are open to all.
var libraries = map[string][]string{
	"github.com/mdlayher/vsock":    {"guest/agent", "vm/vmtest/testguest"},
	"github.com/spf13/cobra":       {"cmd/coracle", "cmd/coracled"},
	"github.com/erofs/go-erofs":    {"images/*"},
	"github.com/hanwen/go-fuse/v2": {"host/share"},
	"gvisor.dev/gvisor":            {"host/network"},
}

// stdlibOnly are the rooms whose promise is to build anywhere with nothing.
var stdlibOnly = []string{"vm", "guest/api", "host/api", "images/manifest", "host/paths"}

type file struct {
	path string // relative to the root
	room string
	test bool
	ast  *ast.File
}

func parse(t *testing.T) (*token.FileSet, []file) {
	t.Helper()
	fset := token.NewFileSet()
	var files []file
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "testdata" || d.Name() == "build" && path.Dir(p) == "." || strings.HasPrefix(d.Name(), ".") && p != ".") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		p = filepath.ToSlash(p)
		files = append(files, file{path: p, room: path.Dir(p), test: strings.HasSuffix(p, "_test.go"), ast: f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("found %d Go files: the walk is broken", len(files))
	}
	return fset, files
}

func allowed(patterns []string, room string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if dir, ok := strings.CutSuffix(p, "/*"); ok {
			return strings.HasPrefix(room, dir+"/")
		}
		return p == room
	})
}

func arrowsOf(room string) ([]string, bool) {
	if to, ok := arrows[room]; ok {
		return to, true
	}
	for pattern, to := range arrows {
		if dir, ok := strings.CutSuffix(pattern, "/*"); ok && strings.HasPrefix(room, dir+"/") {
			return to, true
		}
	}
	return nil, false
}

func TestArrows(t *testing.T) {
	_, files := parse(t)
	for _, f := range files {
		if f.test || f.room == "." {
			continue // tests may reach for a neighbour's fake
		}
		to, known := arrowsOf(f.room)
		if !known {
			t.Errorf("%s: room %s is not in the table of arrows", f.path, f.room)
			continue
		}
		for _, spec := range f.ast.Imports {
			imp, _ := strconv.Unquote(spec.Path.Value)
			room, ours := strings.CutPrefix(imp, module)
			if ours && room != f.room && !allowed(to, room) {
				t.Errorf("%s imports %s: %s may import only %v", f.path, room, f.room, to)
			}
			for library, rooms := range libraries {
				if (imp == library || strings.HasPrefix(imp, library+"/")) && !allowed(rooms, f.room) {
					t.Errorf("%s imports %s, which is for %v", f.path, imp, rooms)
				}
			}
			if !ours && strings.Contains(strings.Split(imp, "/")[0], ".") && slices.Contains(stdlibOnly, f.room) && !strings.HasPrefix(imp, "golang.org/x/sys/") {
				t.Errorf("%s imports %s: %s promises to need the standard library alone", f.path, imp, f.room)
			}
		}
	}
}

func TestPackages(t *testing.T) {
	_, files := parse(t)
	comments := map[string]int{}
	for _, f := range files {
		if f.test {
			continue
		}
		comments[f.room] += 0
		if f.ast.Doc != nil {
			comments[f.room]++
		}
		switch f.ast.Name.Name {
		case "util", "utils", "common", "helpers", "misc", "base", "types":
			t.Errorf("%s: package %s is named for nothing", f.path, f.ast.Name.Name)
		}
	}
	for room, n := range comments {
		if n != 1 {
			t.Errorf("%s has %d package comments: want one that says what it owns and who its neighbours are", room, n)
		}
	}
}

// The measures of a thing that fits in a head.
const (
	maxFile      = 500
	maxFunction  = 60
	maxInterface = 5
	maxStruct    = 15
)

// wireTypes are structs and interfaces as long as what they mirror: a document on the wire has the fields it has.
var wireTypes = []string{"host/api.Status"}

func TestSizes(t *testing.T) {
	fset, files := parse(t)
	for _, f := range files {
		lines := func(n ast.Node) int { return fset.Position(n.End()).Line - fset.Position(n.Pos()).Line + 1 }
		if n := lines(f.ast); n > maxFile {
			t.Errorf("%s has %d lines: split it by meaning (at most %d)", f.path, n, maxFile)
		}
		if f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if l := lines(n); l > maxFunction {
					t.Errorf("%s: function %s has %d lines (at most %d)", fset.Position(n.Pos()), n.Name.Name, l, maxFunction)
				}
			case *ast.TypeSpec:
				checkType(t, fset, f, n)
			case *ast.CallExpr:
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Sleep" {
					if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" {
						t.Errorf("%s: time.Sleep outside a test: wait for an event or a deadline", fset.Position(n.Pos()))
					}
				}
			}
			return true
		})
	}
}

func checkType(t *testing.T, fset *token.FileSet, f file, spec *ast.TypeSpec) {
	t.Helper()
	if slices.Contains(wireTypes, f.room+"."+spec.Name.Name) {
		return
	}
	switch typ := spec.Type.(type) {
	case *ast.InterfaceType:
		if n := typ.Methods.NumFields(); n > maxInterface {
			t.Errorf("%s: interface %s has %d methods (at most %d)", fset.Position(spec.Pos()), spec.Name.Name, n, maxInterface)
		}
	case *ast.StructType:
		if n := typ.Fields.NumFields(); n > maxStruct {
			t.Errorf("%s: struct %s has %d fields (at most %d)", fset.Position(spec.Pos()), spec.Name.Name, n, maxStruct)
		}
	}
}
