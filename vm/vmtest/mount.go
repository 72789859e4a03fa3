package vmtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"

	"github.com/coracle-engine/coracle/vm"
)

// Mount is the machine's file system as its guest sees it.
func (g *Guest) Mount(tag string) (files fs.FS, unmount func() error, err error) {
	cfg := g.Config()
	if cfg.FileSystem == nil || tag != cfg.FileSystemTag {
		return nil, nil, fmt.Errorf("mount %q: no such device", tag)
	}
	m := mount{cfg.FileSystem}
	if _, err := m.ask(fuseInit, 0, make([]byte, 64), 64); err != nil {
		return nil, nil, fmt.Errorf("mount %q: %w", tag, err)
	}
	return m, func() error {
		_, err := m.ask(fuseDestroy, 0, nil, 0)
		return err
	}, nil
}

// mount is a FUSE client of a vm.FileSystem.
type mount struct{ files vm.FileSystem }

// ask sends a request and returns the body of the answer, which is no longer than room.
func (m mount) ask(op uint32, node uint64, body []byte, room int) ([]byte, error) {
	b := binary.NativeEndian.AppendUint32(nil, uint32(inHeader+len(body)))
	b = binary.NativeEndian.AppendUint32(b, op)
	b = binary.NativeEndian.AppendUint64(b, 1)
	b = binary.NativeEndian.AppendUint64(b, node)
	out := make([]byte, outHeader+room)
	n := m.files.Serve([][]byte{append(append(b, make([]byte, 16)...), body...)}, [][]byte{out})
	if n < outHeader {
		return nil, fmt.Errorf("answer of %d bytes", n)
	}
	if code := int32(binary.NativeEndian.Uint32(out[4:])); code != 0 {
		return nil, syscall.Errno(-code)
	}
	return out[outHeader:n], nil
}

// Open opens a file of the root directory.
func (m mount) Open(name string) (fs.File, error) {
	entry, err := m.ask(fuseLookup, 1, append([]byte(name), 0), 128)
	if err == nil && len(entry) < 128 {
		err = errors.New("short entry")
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := &mounted{m: m, name: name, node: binary.NativeEndian.Uint64(entry)}
	if _, err := m.ask(fuseOpen, f.node, make([]byte, 8), 16); err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return f, nil
}

// mounted is an open file.
type mounted struct {
	m    mount
	name string
	node uint64
	off  uint64
}

func (f *mounted) Read(p []byte) (int, error) {
	body := binary.NativeEndian.AppendUint64(make([]byte, 8), f.off)
	body = binary.NativeEndian.AppendUint32(body, uint32(len(p)))
	b, err := f.m.ask(fuseRead, f.node, append(body, make([]byte, 20)...), len(p))
	if err == nil && len(b) == 0 && len(p) > 0 {
		err = io.EOF
	}
	f.off += uint64(len(b))
	return copy(p, b), err
}

func (f *mounted) Stat() (fs.FileInfo, error) {
	b, err := f.m.ask(fuseGetattr, f.node, make([]byte, 16), 104)
	if err != nil || len(b) < 104 {
		return nil, fmt.Errorf("stat %s: %d bytes, %w", f.name, len(b), err)
	}
	return info{f.name, int64(binary.NativeEndian.Uint64(b[24:]))}, nil
}

func (f *mounted) Close() error {
	_, err := f.m.ask(fuseRelease, f.node, make([]byte, 24), 0)
	return err
}

// info is what of a file's attributes is looked at.
type info struct {
	name string
	size int64
}

func (i info) Name() string     { return i.name }
func (i info) Size() int64      { return i.size }
func (info) Mode() fs.FileMode  { return 0o644 }
func (info) ModTime() time.Time { return time.Time{} }
func (info) IsDir() bool        { return false }
func (info) Sys() any           { return nil }
