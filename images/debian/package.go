package debian

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/coracle-engine/coracle/images/tree"
)

// Package is an unpacked package's list of files.
type Package struct {
	Locked
	Files  []string // all paths, in the package's order
	Newest time.Time
	nodes  map[string]tree.Node
}

// Get returns the package's file at name.
func (p *Package) Get(name string) (tree.Node, bool) {
	n, ok := p.nodes[name]
	return n, ok
}

// index reads the tar archive that unpack wrote. Contents stay there.
func index(l Locked, name string) (*Package, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &Package{Locked: l, nodes: map[string]tree.Node{}}
	hard := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		file := Merged(path.Clean(strings.TrimPrefix(h.Name, "./")))
		if file == "." || h.Typeflag == tar.TypeDir {
			continue
		}
		if h.ModTime.After(p.Newest) {
			p.Newest = h.ModTime
		}
		switch mode := h.FileInfo().Mode(); h.Typeflag {
		case tar.TypeReg:
			// tar.Reader reads its blocks straight from f, so f now stands at the file's first byte.
			at, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			p.nodes[file] = tree.Node{Mode: mode.Perm() | mode&fs.ModeSetuid, Content: tree.Section(name, at, h.Size, l.SHA256+":"+file)}
		case tar.TypeSymlink:
			p.nodes[file] = tree.Node{Mode: fs.ModeSymlink | 0o777, Target: h.Linkname}
		case tar.TypeLink:
			hard[file] = Merged(path.Clean(strings.TrimPrefix(h.Linkname, "./")))
		default:
			return nil, fmt.Errorf("%s is of type %q, which no image needs", file, h.Typeflag)
		}
		p.Files = append(p.Files, file)
	}
	for file, target := range hard {
		n, ok := p.nodes[target]
		if !ok {
			return nil, fmt.Errorf("%s is a hard link to %s, which is not there", file, target)
		}
		p.nodes[file] = n
	}
	return p, nil
}

// Merged puts a path of the old layout (/bin, /sbin, /lib, /lib64) where it is in a merged /usr.
func Merged(name string) string {
	top, _, _ := strings.Cut(name, "/")
	switch top {
	case "bin", "sbin", "lib", "lib64":
		return "usr/" + name
	}
	return name
}
