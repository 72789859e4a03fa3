package share

import (
	"path/filepath"

	"github.com/coracle-engine/coracle/host/share/notify"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A share is the directory that its path leads to. When that is deleted and made again, or another is moved to its place, the
// new one is served from then on, under the number that the guest's kernel knows the root by: what the guest bound it to goes
// on working.

// adoptAll has each share whose path leads to another directory by now serve that one.
func (s *Server) adoptAll() {
	s.exports.mu.RLock()
	all := make([]*share, 0, len(s.exports.byTag))
	for _, sh := range s.exports.byTag {
		all = append(all, sh)
	}
	s.exports.mu.RUnlock()
	for _, sh := range all {
		s.adopt(sh)
	}
}

// adopt serves the directory that the path of old leads to, if it is not the one that is served. What the guest has of the old
// one is void, but for the root itself; what it remembers of the root's entries is compared with what is there now.
func (s *Server) adopt(old *share) {
	for next := s.exchange(old); next != nil; next = s.exchange(next) { // again, for what came before it was watched
		s.suspect(next.root)
	}
}

// deleted looks whether another directory came in the place of a share's root p that has been deleted; then p is void.
func (s *Server) deleted(sh *share, p place) fuse.Status {
	s.adopt(sh)
	if sh.gone.Load() {
		p.close()
		return estale
	}
	return fuse.OK
}

// exchange puts a new share in the place of old, if its path leads elsewhere; else it returns nil.
func (s *Server) exchange(old *share) *share {
	s.exports.mu.Lock()
	defer s.exports.mu.Unlock()
	if s.exports.byTag[old.Tag] != old {
		return nil
	}
	if id := identities([]string{old.Path}); len(id) == 0 || id[old.root.ident] {
		return nil
	}
	next, err := s.export(old.Share)
	if err != nil {
		s.log.Warn("a shared directory was replaced by one that cannot be shared", "path", old.Path, "error", err)
		return nil
	}
	s.log.Info("a shared directory was replaced", "path", old.Path)
	s.withdraw(old, next)
	s.watchAbove(next)
	s.watch(next.root, next.fd)
	s.exports.byTag[old.Tag] = next
	return next
}

// withdraw makes all void that the guest has of a share; next is what comes in its place, if anything does.
func (s *Server) withdraw(sh, next *share) {
	s.unwatchAbove(sh)
	s.tree.mu.Lock()
	sh.gone.Store(true)
	var dirs []*node
	var open []*handle
	for id, n := range s.tree.byID {
		if n.share != sh {
			continue
		}
		delete(s.tree.byID, id)
		delete(s.tree.byKey, key{sh, n.ident})
		open = append(open, n.handles...)
		if n.dir != nil {
			dirs = append(dirs, n)
		}
	}
	if next != nil {
		s.tree.succeed(sh.root, next.root)
	}
	s.tree.mu.Unlock()
	sh.close()
	for _, h := range open {
		s.handles.close(h.id)
	}
	s.listings.drop(func(n *node) bool { return n.share == sh })
	s.unwatch(dirs)
}

// register gives the root of a share its number.
func (t *tree) register(root *node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	root.id = t.last
	t.byID[root.id], t.byKey[key{root.share, root.ident}] = root, root
}

// succeed has root take the number of old, which the guest bound somewhere, and be told of old's entries as the guest was, so
// that the difference is replayed. Nobody knows root yet. Call with mu held.
func (t *tree) succeed(old, root *node) {
	root.id, root.lookups = old.id, old.lookups
	root.told, root.shown = old.stamps()
	root.shown.mtime = moment{} // whatever listing the guest keeps is not root's
	t.byID[root.id], t.byKey[key{root.share, root.ident}] = root, root
	for name, child := range old.names {
		n := t.byID[child.id]
		if n == nil {
			n = &node{id: child.id, share: root.share, ident: child.ident, kind: child.kind, lookups: child.lookups}
			n.told, n.shown = child.stamps()
			if n.kind == sIFDIR {
				n.dir = &directory{}
			}
			t.byID[n.id], t.byKey[key{n.share, n.ident}] = n, n
		}
		t.link(root, name, n)
	}
}

func (n *node) stamps() (told, shown stamp) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.told, n.shown
}

// watchAbove has it heard of when another directory comes in the place of a share's root. Where that cannot be had, it is seen
// when the guest asks for a root that has been deleted, and at SetShares.
func (s *Server) watchAbove(sh *share) {
	real, err := filepath.EvalSymlinks(sh.Path)
	if err != nil || s.watches.watcher == nil || real == "/" {
		return
	}
	fd, err := unix.Open(filepath.Dir(real), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	w := &s.watches
	w.mu.Lock()
	defer w.mu.Unlock()
	id, err := w.watcher.Add(fd)
	if err != nil {
		return
	}
	sh.above, sh.name = id, filepath.Base(real)
	w.above[id] = append(w.above[id], sh)
}

func (s *Server) unwatchAbove(sh *share) {
	w := &s.watches
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.above[sh.above]
	for i := range list {
		if list[i] != sh {
			continue
		}
		if w.above[sh.above] = append(list[:i:i], list[i+1:]...); len(list) == 1 {
			delete(w.above, sh.above)
		}
		if err := w.watcher.Remove(sh.above); err != nil {
			s.log.Debug("end watch", "error", err)
		}
		return
	}
}

// replaced returns the shares in the place of whose root something came.
func (w *watches) replaced(e notify.Event) []*share {
	if e.Kind != notify.Created && e.Kind != notify.MovedTo {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*share
	for _, sh := range w.above[e.ID] {
		if sh.name == e.Name {
			list = append(list, sh)
		}
	}
	return list
}
