package share

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// locked is a directory that an own change is about to be made in.
type locked struct {
	*node
	at place
}

func (d locked) unlock() {
	d.dir.version.Add(1)
	d.unshown()
	d.dir.mu.Unlock()
	d.at.close()
}

// lock finds the directory id for a change of its entry name, and locks it.
func (s *Server) lock(id uint64, name string) (locked, fuse.Status) {
	if id == fuse.FUSE_ROOT_ID {
		return locked{}, fuse.EPERM
	}
	if st := validName(name); st != fuse.OK {
		return locked{}, st
	}
	n, at, st := s.findDir(id)
	if st != fuse.OK {
		return locked{}, st
	}
	switch {
	case n.share.ReadOnly:
		st = fuse.EROFS
	case s.conceals(n, name):
		st = fuse.EACCES
	}
	if st != fuse.OK {
		at.close()
		return locked{}, st
	}
	n.dir.mu.Lock()
	n.dir.version.Add(1)
	return locked{n, at}, fuse.OK
}

// made answers that the guest made name in d, which fd is open on: its owner is put down, the guest is told of it.
func (s *Server) made(d locked, name string, fd int, in *fuse.InHeader, mode uint32, out *fuse.EntryOut) (*node, fuse.Status) {
	var a attrs
	if err := stat(fd, "", &a); err != nil {
		return nil, status(err)
	}
	uid, gid, mode := s.creator(&d.at.attrs, in.Uid, in.Gid, mode)
	s.own(&a, uid, gid, mode)
	shown := a
	s.view(&shown)
	var n *node
	s.change(func(t *tree) {
		n = t.enter(d.node, name, &a)
		delete(d.dir.removed, name)
	})
	n.made(&shown)
	if n.kind == unix.S_IFDIR {
		s.watch(n, fd)
		if err := stat(fd, "", &a); err != nil {
			s.forget(n, 1)
			return nil, status(err)
		}
	}
	s.entry(out, d.node, n, a, 0)
	return n, fuse.OK
}

// make makes name in the directory id by do, which gets the directory's descriptor.
func (s *Server) make(in *fuse.InHeader, name string, mode uint32, out *fuse.EntryOut, do func(fd int) error) fuse.Status {
	if e, mine := s.replays.of(in.Pid); mine {
		return s.makeReplayed(e, in, name, out)
	}
	d, st := s.lock(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	defer d.unlock()
	if err := do(d.at.fd); err != nil {
		return status(err)
	}
	fd, err := openBeneath(d.at.fd, name, unix.O_PATH, 0)
	if err != nil {
		return status(err)
	}
	defer unix.Close(fd)
	_, st = s.made(d, name, fd, in, mode, out)
	return st
}

// Mkdir answers MKDIR.
func (s *fileSystem) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return s.make(&in.InHeader, name, in.Mode&0o7777|unix.S_IFDIR, out, func(fd int) error {
		return unix.Mkdirat(fd, name, hostMode(unix.S_IFDIR, in.Mode))
	})
}

// Mknod answers MKNOD: of files, pipes and sockets. A device would be the host's.
func (s *fileSystem) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	kind := in.Mode & unix.S_IFMT
	if kind == 0 {
		kind = unix.S_IFREG
	}
	if _, mine := s.replays.of(in.Pid); !mine && kind != unix.S_IFREG && kind != unix.S_IFIFO && kind != unix.S_IFSOCK {
		return fuse.EPERM
	}
	return s.make(&in.InHeader, name, in.Mode&0o7777|kind, out, func(fd int) error {
		return unix.Mknodat(fd, name, kind|hostMode(kind, in.Mode), 0)
	})
}

// Symlink answers SYMLINK. Where it points to is the guest's business: here no symlink is ever followed.
func (s *fileSystem) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return s.make(in, name, unix.S_IFLNK|0o777, out, func(fd int) error { return unix.Symlinkat(target, fd, name) })
}

// Link answers LINK. Between two shares it cannot be.
func (s *fileSystem) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if _, mine := s.replays.of(in.Pid); mine {
		return fuse.EIO
	}
	n := s.tree.get(in.Oldnodeid)
	if n == nil || n.share == nil {
		return estale
	}
	from, st := s.find(n)
	if st != fuse.OK {
		return st
	}
	defer from.close()
	if from.ident != n.ident {
		return estale
	}
	d, st := s.lock(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	defer d.unlock()
	if d.share != n.share {
		return fuse.EXDEV
	}
	if err := unix.Linkat(unix.AT_FDCWD, self(from.fd), d.at.fd, name, unix.AT_SYMLINK_FOLLOW); err != nil {
		return status(err)
	}
	a := from.attrs
	if err := stat(from.fd, "", &a); err != nil {
		return status(err)
	}
	s.change(func(t *tree) {
		t.enter(d.node, name, &a)
		delete(d.dir.removed, name)
	})
	shown := a
	s.view(&shown)
	n.made(&shown)
	s.entry(out, d.node, n, a, 0)
	return fuse.OK
}

// Unlink answers UNLINK.
func (s *fileSystem) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return s.remove(in, name, 0)
}

// Rmdir answers RMDIR.
func (s *fileSystem) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return s.remove(in, name, unix.AT_REMOVEDIR)
}

func (s *Server) remove(in *fuse.InHeader, name string, flags int) fuse.Status {
	if e, mine := s.replays.of(in.Pid); mine {
		return s.removeReplayed(e, in, name)
	}
	left := -1
	defer func() { s.handles.left.drop(left) }()
	d, st := s.lock(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	defer d.unlock()
	a, st := s.look(d.node, d.at.fd, name)
	if st != fuse.OK {
		return st
	}
	left = s.handles.left.hold(d.at.fd, name, &a)
	if err := unix.Unlinkat(d.at.fd, name, flags); err != nil {
		return status(err)
	}
	s.removed(d, name, &a)
	return fuse.OK
}

// removed notes that the guest took name, which was a, out of d.
func (s *Server) removed(d locked, name string, a *attrs) {
	s.change(func(t *tree) {
		t.unlink(d.node, name)
		d.dir.tombstone(name)
	})
	s.orphaned(d.share, a)
}

// tombstone notes that the guest took name away itself, so that the event that comes of it is not news. Call with the tree's
// mu held.
func (d *directory) tombstone(name string) {
	if !d.watched.Load() {
		return
	}
	if d.removed == nil || len(d.removed) > most { // too many: some will be heard twice
		d.removed = map[string]struct{}{}
	}
	d.removed[name] = struct{}{}
}

// orphaned forgets what containers made of a file whose last name, while it was a, is gone; not while it is open.
func (s *Server) orphaned(sh *share, a *attrs) {
	if a.nlink > 1 && a.kind() != unix.S_IFDIR {
		return
	}
	s.tree.mu.RLock()
	n := s.tree.byKey[key{sh, a.ident}]
	open := n != nil && len(n.handles) > 0
	s.tree.mu.RUnlock()
	if !open {
		s.owners.put(a.owner(), owner{})
	}
}

// Rename answers RENAME and RENAME2.
func (s *fileSystem) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if e, mine := s.replays.of(in.Pid); mine {
		return s.renameReplayed(e, in, from, to)
	}
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	left := -1
	defer func() { s.handles.left.drop(left) }()
	a, b, st := s.lockTwo(in.NodeId, from, in.Newdir, to)
	if st != fuse.OK {
		return st
	}
	defer a.unlock()
	if b.node != a.node {
		defer b.unlock()
	}
	moved, st := s.movable(a, from)
	if st != fuse.OK {
		return st
	}
	replaced, st := s.movable(b, to)
	if st != fuse.OK && st != fuse.ENOENT || st == fuse.ENOENT && in.Flags&unix.RENAME_EXCHANGE != 0 {
		return st
	}
	exists := st == fuse.OK
	if exists && in.Flags&unix.RENAME_EXCHANGE == 0 {
		left = s.handles.left.hold(b.at.fd, to, &replaced)
	}
	if err := unix.Renameat2(a.at.fd, from, b.at.fd, to, uint(in.Flags)); err != nil {
		return status(err)
	}
	if exists && moved.ident == replaced.ident {
		return fuse.OK // two names of one file: nothing happens
	}
	s.renamed(a, from, b, to, in.Flags&unix.RENAME_EXCHANGE != 0)
	if exists && in.Flags&unix.RENAME_EXCHANGE == 0 {
		s.orphaned(b.share, &replaced)
	}
	return fuse.OK
}

// movable looks at what is to be moved, or moved away. What holds something hidden stays where it is.
func (s *Server) movable(d locked, name string) (attrs, fuse.Status) {
	var raw attrs
	a, st := s.look(d.node, d.at.fd, name)
	if st == fuse.ENOENT && stat(d.at.fd, name, &raw) == nil {
		return a, fuse.EACCES // hidden
	}
	if st == fuse.OK && a.kind() == unix.S_IFDIR {
		if p, ok := s.tree.path(d.node, 0); !ok || d.share.secrets.pins(joined(p, name)) {
			return a, fuse.EACCES
		}
	}
	return a, st
}

func joined(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// renamed notes that from in a is to in b now, and with exchange the reverse too.
func (s *Server) renamed(a locked, from string, b locked, to string, exchange bool) {
	s.change(func(t *tree) {
		t.rename(a.node, from, b.node, to, exchange)
		if !exchange {
			a.dir.tombstone(from)
		}
		delete(b.dir.removed, to)
	})
}

// rename notes that from in a is to in b now, and with exchange the reverse too. Call with mu held.
func (t *tree) rename(a *node, from string, b *node, to string, exchange bool) {
	moved := []*node{a.names[from], b.names[to]}
	for _, n := range moved { // kept while they are nowhere
		if n != nil {
			t.hold(n, func() { n.lookups++ })
		}
	}
	t.unlink(a, from)
	t.unlink(b, to)
	if moved[0] != nil {
		t.link(b, to, moved[0])
	}
	if exchange && moved[1] != nil {
		t.link(a, from, moved[1])
	}
	for _, n := range moved {
		if n != nil {
			t.hold(n, func() { n.lookups-- })
		}
	}
}

// lockTwo locks two directories of one share for a change of an entry in each. They may be the same, which is locked once.
func (s *Server) lockTwo(from uint64, fromName string, to uint64, toName string) (a, b locked, st fuse.Status) {
	if from == to {
		if a, st = s.lock(from, fromName); st != fuse.OK {
			return a, b, st
		}
		if st = validName(toName); st == fuse.OK && s.conceals(a.node, toName) {
			st = fuse.EACCES
		}
		if st != fuse.OK {
			a.unlock()
		}
		return a, a, st
	}
	first, second := &a, &b
	if from > to { // the lower number first: two renames never wait for one another
		first, second, from, to, fromName, toName = &b, &a, to, from, toName, fromName
	}
	if *first, st = s.lock(from, fromName); st != fuse.OK {
		return a, b, st
	}
	if *second, st = s.lock(to, toName); st != fuse.OK {
		first.unlock()
		return a, b, st
	}
	if a.share != b.share {
		first.unlock()
		second.unlock()
		return a, b, fuse.EXDEV
	}
	return a, b, fuse.OK
}
