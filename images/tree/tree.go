// Package tree holds a file system in memory, as names and references to contents, and writes it as a cpio archive or an
// EROFS image, the same bytes for the same tree. The packages of images fill it; images/build writes it. Paths are slash
// separated and relative to the root, with no leading slash.
package tree

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
)

// Content is what a regular file holds. ID names the bytes: equal IDs, equal bytes.
type Content struct {
	ID   string
	Size int64
	open func() (io.ReadCloser, error)
}

// Open opens the content for reading. The caller closes it.
func (c Content) Open() (io.ReadCloser, error) { return c.open() }

// ReadAll returns the whole content.
func (c Content) ReadAll() ([]byte, error) {
	r, err := c.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// Bytes is a content that is held in memory.
func Bytes(data []byte) Content {
	sum := sha256.Sum256(data)
	return Content{
		ID:   "sha256:" + hex.EncodeToString(sum[:]),
		Size: int64(len(data)),
		open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	}
}

// File is the content of a file on the machine. It reads the file once, to name it.
func File(name string) (Content, error) {
	f, err := os.Open(name)
	if err != nil {
		return Content{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return Content{}, fmt.Errorf("hash %s: %w", name, err)
	}
	return Section(name, 0, n, "sha256:"+hex.EncodeToString(h.Sum(nil))), nil
}

// Section is the content of size bytes from offset of the file name, which the caller vouches to be what id says.
func Section(name string, offset, size int64, id string) Content {
	return Content{ID: id, Size: size, open: func() (io.ReadCloser, error) {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{io.NewSectionReader(f, offset, size), f}, nil
	}}
}

// Node is one entry of a tree. Everything belongs to root, and has no time of its own.
type Node struct {
	Mode    fs.FileMode // type and permission bits: regular, directory, symbolic link or character device
	Target  string      // of a symbolic link
	Content Content     // of a regular file
	Major   uint32      // of a device
	Minor   uint32
}

// Tree is a file system. The zero value is empty and ready for use.
type Tree struct {
	nodes map[string]Node
}

// Dir makes a directory, and those above it with mode 0755. Where it is there already it gets the mode.
func (t *Tree) Dir(name string, perm fs.FileMode) error {
	return t.add(name, Node{Mode: fs.ModeDir | perm})
}

// File makes a regular file.
func (t *Tree) File(name string, perm fs.FileMode, c Content) error {
	return t.add(name, Node{Mode: perm, Content: c})
}

// Link makes a symbolic link to target.
func (t *Tree) Link(name, target string) error {
	return t.add(name, Node{Mode: fs.ModeSymlink | 0o777, Target: target})
}

// Char makes a character device.
func (t *Tree) Char(name string, perm fs.FileMode, major, minor uint32) error {
	return t.add(name, Node{Mode: fs.ModeDevice | fs.ModeCharDevice | perm, Major: major, Minor: minor})
}

// add refuses to put one thing where a different one is, so that no package silently covers another's file.
func (t *Tree) add(name string, n Node) error {
	if !fs.ValidPath(name) || name == "." {
		return fmt.Errorf("add %q to the tree: not a clean relative path", name)
	}
	if t.nodes == nil {
		t.nodes = map[string]Node{}
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		have, ok := t.nodes[dir]
		if ok && !have.Mode.IsDir() {
			return fmt.Errorf("add %s to the tree: %s is no directory", name, dir)
		}
		if !ok {
			t.nodes[dir] = Node{Mode: fs.ModeDir | 0o755}
		}
	}
	if have, ok := t.nodes[name]; ok && !(have.Mode.IsDir() && n.Mode.IsDir()) && !same(have, n) {
		return fmt.Errorf("add %s to the tree: something else is there", name)
	}
	t.nodes[name] = n
	return nil
}

func same(a, b Node) bool {
	return a.Mode == b.Mode && a.Target == b.Target && a.Content.ID == b.Content.ID && a.Major == b.Major && a.Minor == b.Minor
}

// Names returns every path, parents before their children, in byte order.
func (t *Tree) Names() []string { return slices.Sorted(maps.Keys(t.nodes)) }

// Get returns the node at name.
func (t *Tree) Get(name string) (Node, bool) {
	n, ok := t.nodes[name]
	return n, ok
}

// Size is the sum of the regular files' sizes in bytes.
func (t *Tree) Size() int64 {
	var sum int64
	for _, n := range t.nodes {
		sum += n.Content.Size
	}
	return sum
}

// Digest names the whole tree: equal trees, equal digests. It trusts the contents' IDs and reads nothing.
func (t *Tree) Digest() string {
	h := sha256.New()
	for _, name := range t.Names() {
		n := t.nodes[name]
		fmt.Fprintf(h, "%q %o %q %s %d %d\n", name, uint32(n.Mode), n.Target, n.Content.ID, n.Major, n.Minor)
	}
	return hex.EncodeToString(h.Sum(nil))
}
