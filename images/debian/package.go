package debian

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/coracle-engine/coracle/images/tree"
)

// Package is an unpacked package. Its paths are those of a merged /usr; directories are not listed.
type Package struct {
	Locked
	Newest time.Time // of the times of its files
	Nodes  map[string]tree.Node
}

// Files returns all paths, sorted.
func (p *Package) Files() []string { return slices.Sorted(maps.Keys(p.Nodes)) }

// index reads the tar archive that unpack wrote. Contents stay there.
func index(l Locked, name string) (*Package, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &Package{Locked: l, Nodes: map[string]tree.Node{}}
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
			p.Nodes[file] = tree.Node{Mode: mode.Perm() | mode&fs.ModeSetuid, Content: tree.Section(name, at, h.Size, l.SHA256+":"+file)}
		case tar.TypeSymlink:
			p.Nodes[file] = tree.Node{Mode: fs.ModeSymlink | 0o777, Target: h.Linkname}
		case tar.TypeLink:
			hard[file] = Merged(path.Clean(strings.TrimPrefix(h.Linkname, "./")))
		default:
			return nil, fmt.Errorf("%s is of type %q, which no image needs", file, h.Typeflag)
		}
	}
	for file, target := range hard {
		n, ok := p.Nodes[target]
		if !ok {
			return nil, fmt.Errorf("%s is a hard link to %s, which is not there", file, target)
		}
		p.Nodes[file] = n
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
