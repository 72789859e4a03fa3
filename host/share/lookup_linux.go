package share

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// validName says whether name is one in a directory.
func validName(name string) fuse.Status {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return fuse.EINVAL
	case len(name) > 255:
		return fuse.Status(unix.ENAMETOOLONG)
	}
	return fuse.OK
}

// conceals says whether name in dir is hidden by its path.
func (s *Server) conceals(dir *node, name string) bool {
	return dir.share.secrets.hides(func() string {
		p, _ := s.tree.path(dir, 0)
		return p
	}, name)
}

// look asks the host for name in dir, which fd is open on. What is hidden is not there.
func (s *Server) look(dir *node, fd int, name string) (attrs, fuse.Status) {
	var a attrs
	if st := validName(name); st != fuse.OK {
		return a, st
	}
	if s.conceals(dir, name) {
		return a, fuse.ENOENT
	}
	if err := stat(fd, name, &a); err != nil {
		return a, status(err)
	}
	if a.kind() != unix.S_IFDIR && a.dev == dir.ident.dev {
		return a, fuse.OK
	}
	if s.exports.hides(a.ident) {
		return a, fuse.ENOENT
	}
	if a.dev != dir.ident.dev {
		there, err := openBeneath(fd, name, unix.O_PATH, 0)
		if err != nil {
			return a, status(err)
		}
		defer unix.Close(there)
		if s.devices.of(a.dev, there).unfile {
			return a, fuse.ENOENT
		}
	}
	return a, fuse.OK
}

func (e *exports) hides(id ident) bool {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.hidden[id]
}

// enter notes that the guest is told that name in dir is what a says, and counts the telling. version is the directory's from
// before a was looked up: when it changed, a may be outdated, and the answer is nil.
func (s *Server) enter(dir *node, name string, a *attrs, version uint64) *node {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	if version%2 != 0 || dir.dir.version.Load() != version || dir.share.gone.Load() {
		return nil
	}
	return s.tree.enter(dir, name, a)
}

// enter is Server.enter without its question. Call with mu held.
func (t *tree) enter(dir *node, name string, a *attrs) *node {
	n := t.intern(dir.share, a.ident, a.kind())
	t.hold(n, func() { n.lookups++ })
	t.link(dir, name, n)
	return n
}

// lookup answers what name in dir is; at is the directory. Two directories that are one another's would dead-lock the guest's
// kernel: a share's root is not found beneath itself.
func (s *Server) lookup(dir *node, at place, name string, out *fuse.EntryOut) fuse.Status {
	for try := range 6 {
		if try == 3 { // much is being changed here: wait for a turn
			dir.dir.mu.Lock()
			defer dir.dir.mu.Unlock()
		}
		version := dir.dir.version.Load()
		a, st := s.look(dir, at.fd, name)
		if st == fuse.ENOENT {
			if s.trusted(dir, 0) {
				out.SetEntryTimeout(long)
				return fuse.OK // with no node: it is missing, and may be remembered so
			}
			return st
		} else if st != fuse.OK {
			return st
		}
		if a.ident == dir.share.root.ident {
			return fuse.Status(unix.ELOOP)
		}
		n := s.enter(dir, name, &a, version)
		if n == nil {
			continue
		}
		if n.kind == unix.S_IFDIR {
			if err := s.see(n, at.fd, name, &a); err != nil {
				s.forget(n, 1)
				continue
			}
		}
		s.entry(out, dir, n, a, 0)
		return fuse.OK
	}
	return estale
}

// see has the directory n, which is name in fd, watched, and then looks at it again.
func (s *Server) see(n *node, fd int, name string, a *attrs) error {
	there, err := openBeneath(fd, name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(there)
	s.watch(n, there)
	if err := stat(there, "", a); err != nil {
		return err
	}
	if a.ident != n.ident {
		return unix.ESTALE
	}
	return nil
}

// Lookup answers LOOKUP.
func (s *fileSystem) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		return s.lookupShare(name, out)
	}
	if e, mine := s.replays.of(in.Pid); mine && e != nil {
		if st, done := s.lookupReplayed(e, in.NodeId, name, out); done {
			return st
		}
	}
	dir, at, st := s.findDir(in.NodeId)
	if st != fuse.OK {
		return st
	}
	defer at.close()
	return s.lookup(dir, at, name, out)
}

// lookupShare answers what name in the device's root is. It is not remembered for long: the set of shares changes.
func (s *Server) lookupShare(name string, out *fuse.EntryOut) fuse.Status {
	s.exports.mu.RLock()
	sh := s.exports.byTag[name]
	s.exports.mu.RUnlock()
	if sh == nil {
		return fuse.ENOENT
	}
	at, st := s.find(sh.root)
	if st != fuse.OK {
		return st
	}
	defer at.close()
	s.watch(sh.root, at.fd)
	if err := stat(at.fd, "", &at.attrs); err != nil {
		return status(err)
	}
	s.tree.mu.Lock()
	sh.root.lookups++
	s.tree.mu.Unlock()
	s.view(&at.attrs)
	sh.root.shows(&at.attrs)
	out.NodeId = sh.root.id
	s.fill(&out.Attr, &at.attrs)
	out.SetEntryTimeout(brief)
	out.SetAttrTimeout(s.attrTimeout(sh.root, &at.attrs, 0))
	return fuse.OK
}

// Forget answers FORGET, and each part of BATCH_FORGET.
func (s *fileSystem) Forget(id, count uint64) {
	if n := s.tree.get(id); n != nil {
		s.forget(n, count)
	}
}

func (s *Server) forget(n *node, count uint64) {
	s.change(func(t *tree) { t.hold(n, func() { n.lookups -= min(count, n.lookups) }) })
}

// change changes the tree, and ends the watches that nobody needs any more.
func (s *Server) change(f func(*tree)) {
	s.tree.mu.Lock()
	f(s.tree)
	unheld := s.tree.unheld
	s.tree.unheld = nil
	s.tree.mu.Unlock()
	s.unwatch(unheld)
}
