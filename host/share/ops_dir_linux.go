package share

import (
	"bytes"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// OpenDir answers OPENDIR, once: directories have no handles, so that the guest's kernel may keep their listing and need not
// ask for it again. What each part of a listing goes on from is the host's own offset in the directory.
func (s *fileSystem) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status {
	return fuse.ENOSYS
}

// ReleaseDir answers RELEASEDIR, which does not come.
func (s *fileSystem) ReleaseDir(*fuse.ReleaseIn) {}

// FsyncDir answers FSYNCDIR.
func (s *fileSystem) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		return fuse.OK
	}
	_, at, st := s.findDir(in.NodeId)
	if st != fuse.OK {
		return st
	}
	defer at.close()
	fd, err := reopen(at.fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return status(err)
	}
	defer unix.Close(fd)
	return status(unix.Fsync(fd))
}

// listing is a directory that was read in part, kept open for who reads on.
type listing struct {
	node *node
	off  int64
	fd   int
}

// listings are the last of them. Where one is missing, another is opened in its place: only on file systems whose offsets mean
// nothing to another descriptor does it matter.
type listings struct {
	mu   sync.Mutex
	open []listing
}

const maxListings = 32

// take returns a descriptor that reads n from off on, which the caller closes or keeps; -1 if there is none.
func (l *listings) take(n *node, off int64) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, o := range l.open {
		if o.node == n && o.off == off {
			l.open = slices.Delete(l.open, i, i+1)
			return o.fd
		}
	}
	return -1
}

func (l *listings) keep(o listing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.open) == maxListings {
		unix.Close(l.open[0].fd)
		l.open = slices.Delete(l.open, 0, 1)
	}
	l.open = append(l.open, o)
}

func (l *listings) drop(which func(*node) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = slices.DeleteFunc(l.open, func(o listing) bool {
		if !which(o.node) {
			return false
		}
		unix.Close(o.fd)
		return true
	})
}

// item is an entry of a listing. st is how it went to look at it, where that was asked for.
type item struct {
	fuse.DirEntry
	attrs attrs
	st    fuse.Status
	node  *node
}

// ReadDir answers READDIR.
func (s *fileSystem) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(in, out, false)
}

// ReadDirPlus answers READDIRPLUS: each entry is looked up too.
func (s *fileSystem) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.readDir(in, out, true)
}

func (s *Server) readDir(in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		return s.readRoot(in, out, plus)
	}
	dir, at, st := s.findDir(in.NodeId)
	if st != fuse.OK {
		return st
	}
	defer at.close()
	version := dir.dir.version.Load()
	fd := s.listings.take(dir, int64(in.Offset))
	if fd < 0 {
		var err error
		if fd, err = reopen(at.fd, unix.O_RDONLY|unix.O_DIRECTORY); err != nil {
			return status(err)
		}
	}
	items, end, st := s.list(dir, at.fd, fd, in, plus)
	if st != fuse.OK || end {
		unix.Close(fd)
	} else {
		s.listings.keep(listing{dir, int64(items[len(items)-1].Off), fd})
	}
	if st != fuse.OK {
		return st
	}
	if plus {
		s.enterAll(dir, items, version)
	}
	for i := range items {
		s.emit(out, dir, &items[i], plus)
	}
	return fuse.OK
}

// direntSize and entrySize are the lengths of struct fuse_dirent without its name and of struct fuse_entry_out.
const direntSize, entrySize = 24, 128

// list reads from stream, which is open on the directory that at is, what fits in the answer to in. end says that there is no
// more.
func (s *Server) list(dir *node, at, stream int, in *fuse.ReadIn, plus bool) (items []item, end bool, st fuse.Status) {
	if _, err := unix.Seek(stream, int64(in.Offset), unix.SEEK_SET); err != nil {
		return nil, false, status(err)
	}
	room, overhead := int(in.Size), direntSize
	if plus {
		overhead += entrySize
	}
	buf := make([]byte, min(max(room/2, 1024), 32<<10))
	for {
		n, err := unix.Getdents(stream, buf)
		if err != nil {
			return nil, false, status(err)
		}
		if n == 0 {
			return items, true, fuse.OK
		}
		for rest := buf[:n]; len(rest) > 0; {
			var it item
			it.DirEntry, rest = parseDirent(rest)
			if it.Name == "" || !s.describe(dir, at, &it, plus) {
				continue
			}
			if room -= overhead + (len(it.Name)+7)&^7; room < 0 {
				if len(items) == 0 {
					return nil, false, fuse.EINVAL
				}
				return items, false, fuse.OK
			}
			items = append(items, it)
		}
	}
}

// parseDirent decodes the first struct linux_dirent64 of what getdents64(2) gave.
func parseDirent(b []byte) (fuse.DirEntry, []byte) {
	const head = 19
	size := int(binary.NativeEndian.Uint16(b[16:]))
	name := b[head:size]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	return fuse.DirEntry{
		Ino: binary.NativeEndian.Uint64(b), Off: binary.NativeEndian.Uint64(b[8:]), Mode: uint32(b[18]) << 12, Name: string(name),
	}, b[size:]
}

// describe looks at an entry, where that is asked for or needed to know whether it is hidden; false if it is.
func (s *Server) describe(dir *node, at int, it *item, plus bool) bool {
	if it.Name == "." || it.Name == ".." {
		it.st = fuse.ENOENT
		return true
	}
	if !plus && it.Mode != unix.S_IFDIR && it.Mode != 0 {
		return !s.conceals(dir, it.Name)
	}
	it.attrs, it.st = s.look(dir, at, it.Name)
	return it.st != fuse.ENOENT
}

// enterAll notes that the guest is told of all items.
func (s *Server) enterAll(dir *node, items []item, version uint64) {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	if version%2 != 0 || dir.dir.version.Load() != version || dir.share.gone.Load() {
		return // something changed: the guest gets the names, and asks for what it wants to know
	}
	for i := range items {
		it := &items[i]
		if it.st == fuse.OK && it.attrs.ident != dir.share.root.ident {
			it.node = s.tree.enter(dir, it.Name, &it.attrs)
		}
	}
}

// emit writes one entry of a listing. The attributes of a directory are not to be remembered before it is watched, which it is
// when the guest first comes to it.
func (s *Server) emit(out *fuse.DirEntryList, dir *node, it *item, plus bool) {
	it.Ino = s.devices.inode(ident{dev: dir.ident.dev, ino: it.Ino})
	if it.st == fuse.OK {
		it.Ino = s.devices.inode(it.attrs.ident)
	}
	if !plus {
		out.AddDirEntry(it.DirEntry)
		return
	}
	var entry fuse.EntryOut
	if it.node != nil {
		s.entry(&entry, dir, it.node, it.attrs, 0)
	}
	if place := out.AddDirLookupEntry(it.DirEntry); place != nil {
		*place = entry
	} else if it.node != nil {
		s.forget(it.node, 1)
	}
}

// readRoot lists the shares.
func (s *Server) readRoot(in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) fuse.Status {
	s.exports.mu.RLock()
	tags := make([]string, 0, len(s.exports.byTag))
	for tag := range s.exports.byTag {
		tags = append(tags, tag)
	}
	s.exports.mu.RUnlock()
	slices.Sort(tags)
	tags = append([]string{".", ".."}, tags...)
	for i, tag := range tags {
		e := fuse.DirEntry{Name: tag, Mode: unix.S_IFDIR, Off: uint64(i + 1)}
		if uint64(i) < in.Offset {
			continue
		}
		if plus {
			if out.AddDirLookupEntry(e) == nil {
				break
			}
		} else if !out.AddDirEntry(e) {
			break
		}
	}
	return fuse.OK
}
