package tree

import (
	"fmt"
	"io"
	"io/fs"
	"time"

	"github.com/erofs/go-erofs"
)

// WriteEROFS writes the tree as an EROFS image, uncompressed: under emulation decompression costs the guest more time than
// reading does, and the download is compressed as a whole. Every time in it is built. temp is a directory for its spool.
func (t *Tree) WriteEROFS(out io.WriteSeeker, temp string, built time.Time) error {
	w := erofs.Create(out, erofs.WithBuildTime(uint64(built.Unix()), 0), erofs.WithTempDir(temp), erofs.WithBlockSize(4096))
	for _, name := range t.Names() {
		if err := addEROFS(w, "/"+name, t.nodes[name]); err != nil {
			return fmt.Errorf("write %s to the image: %w", name, err)
		}
		if err := w.Chtimes("/"+name, built, built); err != nil {
			return err
		}
	}
	if err := w.Chtimes("/", built, built); err != nil {
		return err
	}
	return w.Close()
}

func addEROFS(w *erofs.Writer, name string, n Node) error {
	switch {
	case n.Mode.IsDir():
		if err := w.Mkdir(name, n.Mode.Perm()); err != nil {
			return err
		}
		return w.Chmod(name, n.Mode)
	case n.Mode&fs.ModeSymlink != 0:
		return w.Symlink(n.Target, name)
	case !n.Mode.IsRegular():
		return fmt.Errorf("devices have no place in the root: /dev is mounted over it")
	}
	f, err := w.Create(name)
	if err != nil {
		return err
	}
	if err := copyContent(f, n.Content); err != nil {
		return err
	}
	if err := f.Chmod(n.Mode); err != nil {
		return err
	}
	return f.Close()
}
