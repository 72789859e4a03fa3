package tree

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/erofs/go-erofs"
	"github.com/google/go-cmp/cmp"
)

// sample has one of everything, and many files, in an order of its own.
func sample(t *testing.T) *Tree {
	t.Helper()
	var tr Tree
	for i := range 300 {
		data := []byte(strings.Repeat(strconv.Itoa(i), i*7))
		if err := tr.File(fmt.Sprintf("usr/share/many/%03d", 299-i), 0o644, Bytes(data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		tr.File("usr/bin/tool", 0o755, Bytes(bytes.Repeat([]byte("x"), 10_000))),
		tr.File("usr/bin/su", 0o755|fs.ModeSetuid, Bytes([]byte("s"))),
		tr.File("etc/empty", 0o600, Bytes(nil)),
		tr.Dir("tmp", 0o777|fs.ModeSticky),
		tr.Dir("root", 0o700),
		tr.Link("bin", "usr/bin"),
		tr.Link("etc/long", strings.Repeat("../", 100)+"x"),
	); err != nil {
		t.Fatal(err)
	}
	return &tr
}

func TestAddRefuses(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(*Tree) error
		want string
	}{
		{"absolute", func(tr *Tree) error { return tr.Dir("/x", 0o755) }, "not a clean"},
		{"upward", func(tr *Tree) error { return tr.Link("a/../../x", "y") }, "not a clean"},
		{"root", func(tr *Tree) error { return tr.Dir(".", 0o755) }, "not a clean"},
		{"below a file", func(tr *Tree) error { return tr.File("f/x", 0o644, Bytes(nil)) }, "f is no directory"},
		{"below a link", func(tr *Tree) error { return tr.File("l/x", 0o644, Bytes(nil)) }, "l is no directory"},
		{"another content", func(tr *Tree) error { return tr.File("f", 0o644, Bytes([]byte("2"))) }, "something else"},
		{"another mode", func(tr *Tree) error { return tr.File("f", 0o755, Bytes([]byte("1"))) }, "something else"},
		{"another target", func(tr *Tree) error { return tr.Link("l", "g") }, "something else"},
		{"file for directory", func(tr *Tree) error { return tr.File("d", 0o644, Bytes(nil)) }, "something else"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var tr Tree
			if err := errors.Join(tr.File("f", 0o644, Bytes([]byte("1"))), tr.Link("l", "f"), tr.Dir("d", 0o755)); err != nil {
				t.Fatal(err)
			}
			before := tr.Digest()
			if err := test.do(&tr); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error is %v: want one with %q", err, test.want)
			}
			if tr.Digest() != before {
				t.Error("a refused entry changed the tree")
			}
		})
	}
	var tr Tree
	if err := errors.Join(tr.File("f", 0o644, Bytes([]byte("1"))), tr.File("f", 0o644, Bytes([]byte("1")))); err != nil {
		t.Errorf("the same file twice: %v", err)
	}
}

func TestDigestSeesEverything(t *testing.T) {
	base := func() *Tree {
		var tr Tree
		_ = errors.Join(tr.File("f", 0o644, Bytes([]byte("1"))), tr.Link("l", "f"), tr.Char("c", 0o600, 5, 1))
		return &tr
	}
	seen := map[string]string{base().Digest(): "base"}
	for name, change := range map[string]func(*Tree) error{
		"content": func(tr *Tree) error { tr.nodes["f"] = Node{Mode: 0o644, Content: Bytes([]byte("2"))}; return nil },
		"mode":    func(tr *Tree) error { tr.nodes["f"] = Node{Mode: 0o600, Content: Bytes([]byte("1"))}; return nil },
		"target":  func(tr *Tree) error { tr.nodes["l"] = Node{Mode: fs.ModeSymlink | 0o777, Target: "c"}; return nil },
		"name":    func(tr *Tree) error { return tr.Dir("d", 0o755) },
		"device": func(tr *Tree) error {
			tr.nodes["c"] = Node{Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Major: 5, Minor: 2}
			return nil
		},
	} {
		tr := base()
		if err := change(tr); err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[tr.Digest()]; ok {
			t.Errorf("another %s gives the digest of %s", name, other)
		}
		seen[tr.Digest()] = name
	}
}

func TestEROFSRoundTrip(t *testing.T) {
	tr := sample(t)
	built := time.Unix(1_700_000_000, 0)
	write := func() []byte {
		dir := t.TempDir()
		f, err := os.Create(filepath.Join(dir, "image"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := tr.WriteEROFS(f, dir, built); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	image := write()
	if !bytes.Equal(image, write()) {
		t.Error("the same tree gives different images")
	}
	got, err := erofs.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	if err := fs.WalkDir(got, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		names = append(names, name)
		checkEntry(t, tr, got, name, d, built)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(len(tr.Names()), len(names)); diff != "" {
		t.Errorf("number of entries: %s", diff)
	}
}

func checkEntry(t *testing.T, tr *Tree, image fs.FS, name string, d fs.DirEntry, built time.Time) {
	t.Helper()
	want, ok := tr.Get(name)
	info, err := d.Info()
	if !ok || err != nil {
		t.Fatalf("%s: in the tree: %v, error %v", name, ok, err)
	}
	// The library's modes have permissions as in st_mode, set-user-id and sticky bits too, and types as in fs.FileMode.
	if got := uint32(info.Mode()) & 0o7777; got != unixMode(want.Mode)&0o7777 || info.Mode().Type() != want.Mode.Type() {
		t.Errorf("%s has mode %o, %v: want %v", name, got, info.Mode().Type(), want.Mode)
	}
	if !info.ModTime().Equal(built) {
		t.Errorf("%s is of %v: want %v", name, info.ModTime(), built)
	}
	switch {
	case want.Mode&fs.ModeSymlink != 0:
		if target, err := fs.ReadLink(image, name); err != nil || target != want.Target {
			t.Errorf("%s leads to %q, error %v: want %q", name, target, err, want.Target)
		}
	case want.Mode.IsRegular():
		data, err := fs.ReadFile(image, name)
		all, err2 := want.Content.ReadAll()
		if err := errors.Join(err, err2); err != nil || !bytes.Equal(data, all) {
			t.Errorf("%s has %d bytes, error %v: want %d", name, len(data), err, len(all))
		}
	}
}

func TestCPIO(t *testing.T) {
	tr := sample(t)
	if err := tr.Char("dev/console", 0o600, 5, 1); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tr.WriteCPIO(&out); err != nil {
		t.Fatal(err)
	}
	if out.Len()%4 != 0 {
		t.Errorf("the archive has %d bytes: another can't follow", out.Len())
	}
	var names []string
	for rest := out.Bytes(); len(rest) > 0; {
		name, mode, data, device, n := cpioEntry(t, rest)
		rest = rest[n:]
		if name == "TRAILER!!!" {
			if len(rest) != 0 {
				t.Errorf("%d bytes follow the trailer", len(rest))
			}
			break
		}
		names = append(names, name)
		want, _ := tr.Get(name)
		if mode != unixMode(want.Mode) || device != [2]uint64{uint64(want.Major), uint64(want.Minor)} {
			t.Errorf("%s has mode %o, device %v", name, mode, device)
		}
		all := []byte(want.Target)
		if want.Mode.IsRegular() {
			all, _ = want.Content.ReadAll()
		}
		if !bytes.Equal(all, data) {
			t.Errorf("%s has %d bytes: want %d", name, len(data), len(all))
		}
	}
	if diff := cmp.Diff(tr.Names(), names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
}

// cpioEntry reads one entry of a newc archive as the kernel does, and returns how many bytes it took.
func cpioEntry(t *testing.T, b []byte) (name string, mode uint32, data []byte, device [2]uint64, n int) {
	t.Helper()
	if len(b) < 110 || string(b[:6]) != "070701" {
		t.Fatalf("no header: %.20q", b)
	}
	field := func(i int) uint64 {
		v, err := strconv.ParseUint(string(b[6+8*i:14+8*i]), 16, 32)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if mtime := field(5); mtime != 0 {
		t.Errorf("an entry has time %d", mtime)
	}
	nameLen, size := int(field(11)), int(field(6))
	name = string(b[110 : 110+nameLen-1])
	at := (110 + nameLen + 3) &^ 3
	return name, uint32(field(1)), b[at : at+size], [2]uint64{field(9), field(10)}, (at + size + 3) &^ 3
}

func TestUnixMode(t *testing.T) {
	for mode, want := range map[fs.FileMode]uint32{
		0o644:                  0o100644,
		0o755 | fs.ModeSetuid:  0o104755,
		fs.ModeDir | 0o755:     0o040755,
		fs.ModeSymlink | 0o777: 0o120777,
		fs.ModeDir | 0o1777&0o777 | fs.ModeSticky: 0o041777,
		fs.ModeDevice | fs.ModeCharDevice | 0o600: 0o020600,
	} {
		if got := unixMode(mode); got != want {
			t.Errorf("unixMode(%v) is %o: want %o", mode, got, want)
		}
	}
}

func TestContentOfAnotherSize(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(name, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	var tr Tree
	if err := tr.File("f", 0o644, Section(name, 0, 100, "id")); err != nil {
		t.Fatal(err)
	}
	if err := tr.WriteCPIO(io.Discard); err == nil || !strings.Contains(err.Error(), "5 bytes: want 100") {
		t.Errorf("error is %v", err)
	}
}
