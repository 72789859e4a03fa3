package share

import (
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/share/notify"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What the guest was told is compared with the host's truth, and exactly the difference is replayed. From then on the guest
// counts as told: the requests of a replay are answered by what was armed here.

// tick is within what two changes can have the same time.
const tick = 20 * time.Millisecond

// truth is what the host has in a directory now.
type truth struct {
	s   *Server
	dir *node
	at  place
	st  fuse.Status
}

// open looks up the directory of a change, and keeps everybody else from changing it until close. A directory that is gone has
// nothing in it.
func (s *Server) openTruth(dir *node) truth {
	dir.dir.mu.Lock()
	dir.dir.version.Add(1)
	t := truth{s: s, dir: dir}
	t.at, t.st = s.find(dir)
	return t
}

func (t truth) close() {
	t.dir.dir.version.Add(1)
	t.dir.dir.mu.Unlock()
	if t.st == fuse.OK {
		t.at.close()
	}
}

func (t truth) look(name string) (attrs, bool) {
	if t.st != fuse.OK {
		return attrs{}, false
	}
	a, st := t.s.look(t.dir, t.at.fd, name)
	return a, st == fuse.OK
}

// compare returns what is to be replayed of a change; nil if the guest knows all.
func (s *Server) compare(c *change) *expectation {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.void(c.dir) {
		return nil
	}
	if c.name == "" {
		return s.compareSelf(c.dir)
	}
	t := s.openTruth(c.dir)
	defer t.close()
	a, found := t.look(c.name)
	s.tree.mu.RLock()
	told := c.dir.names[c.name]
	s.tree.mu.RUnlock()
	_, ours := c.dir.dir.removed[c.name]
	if found || c.kinds.has(notify.Removed, notify.MovedFrom) { // else that event is still to come
		delete(c.dir.dir.removed, c.name)
	}
	switch {
	case told != nil && found && told.ident == a.ident && told.kind == a.kind():
		return s.compareNode(c, told)
	case told != nil:
		c.kinds |= kind(notify.Created) // whatever has come in its place is new
		return s.expectGone(c, told)
	case found && c.kinds.has(notify.Created, notify.MovedTo):
		return s.expectNew(c, a)
	case found && c.kinds.has(notify.Modified, notify.Attributes):
		return s.expectUnseen(c, a)
	case !found && !ours && c.kinds.has(notify.Removed, notify.MovedFrom) && !c.kinds.has(notify.Created, notify.MovedTo):
		n := &node{share: c.dir.share, kind: unix.S_IFREG} // the guest never saw what it was
		if c.isDir {
			n.kind, n.dir = unix.S_IFDIR, &directory{}
		}
		return s.expectGone(c, n)
	}
	return nil
}

// void says whether the guest can know nothing of dir any more: what was heard of it came before a reset, or its share is gone.
// Call with gate held.
func (s *Server) void(dir *node) bool { return dir.share.gone.Load() || s.tree.get(dir.id) != dir }

// expectNew has the guest make what came to be on the host.
func (s *Server) expectNew(c *change, a attrs) *expectation {
	e := &expectation{dir: c.dir, name: c.name, attrs: a}
	e.replay = guestapi.Replay{Op: guestapi.ReplayLink, Mode: a.mode}
	switch a.kind() {
	case unix.S_IFREG:
		e.replay.Op = guestapi.ReplayCreate
	case unix.S_IFDIR:
		e.replay.Op = guestapi.ReplayMkdir
	}
	ok := true
	s.change(func(t *tree) {
		e.node = t.intern(c.dir.share, a.ident, a.kind())
		t.link(c.dir, c.name, e.node)
		e.replay.Path, ok = t.place(c.dir, c.name)
	})
	s.tell(e.node, a)
	if !ok || a.ident == c.dir.share.root.ident {
		return nil
	}
	return e
}

// tell notes that watchers hear of a.
func (s *Server) tell(n *node, a attrs) {
	s.view(&a)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = stampOf(&a)
	n.told.at = now()
}

// expectGone has the guest take away n, which is gone on the host.
func (s *Server) expectGone(c *change, n *node) *expectation {
	e := &expectation{dir: c.dir, name: c.name, node: n, replay: guestapi.Replay{Op: guestapi.ReplayUnlink}}
	if n.kind == unix.S_IFDIR {
		e.replay.Op = guestapi.ReplayRmdir
	}
	ok := true
	s.change(func(t *tree) {
		if n.id == 0 {
			t.last++
			n.id = t.last
		}
		e.replay.Path, ok = t.place(c.dir, c.name)
		if t.unlink(c.dir, c.name) != nil {
			n.loses(c.dir, c.name)
		}
	})
	e.attrs = n.lastSeen()
	if !ok {
		return nil
	}
	return e
}

// lastSeen is what is still known of a file that is gone.
func (n *node) lastSeen() attrs {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := attrs{ident: n.ident, mode: n.kind | 0o600, nlink: 1, size: n.told.size, mtime: n.told.mtime, ctime: n.told.ctime}
	if n.told.known {
		a.mode, a.uid, a.gid = n.told.mode, n.told.uid, n.told.gid
	}
	return a
}

// expectUnseen replays a change of what the guest never looked at.
func (s *Server) expectUnseen(c *change, a attrs) *expectation {
	var n *node
	s.change(func(t *tree) {
		n = t.intern(c.dir.share, a.ident, a.kind())
		t.link(c.dir, c.name, n)
	})
	s.tell(n, a)
	if a.kind() == unix.S_IFREG && c.kinds.has(notify.Modified) {
		return s.expectChange(c.dir, c.name, n, guestapi.ReplayModify, a)
	}
	return s.expectChange(c.dir, c.name, n, guestapi.ReplayAttrib, a)
}

func (s *Server) expectChange(dir *node, name string, n *node, op string, a attrs) *expectation {
	s.view(&a)
	e := &expectation{node: n, attrs: a, replay: guestapi.Replay{Op: op, Size: int64(a.size), Mode: a.mode}}
	s.tree.mu.RLock()
	defer s.tree.mu.RUnlock()
	path, ok := s.tree.place(dir, name)
	if !ok {
		return nil
	}
	e.replay.Path = path
	return e
}

// compareNode compares what the guest has heard of n, which is name in the directory of c, with what it is now.
func (s *Server) compareNode(c *change, n *node) *expectation {
	n.content.Lock()
	defer n.content.Unlock()
	p, st := s.find(n)
	if st != fuse.OK {
		return nil // on its way elsewhere
	}
	p.close()
	if p.ident != n.ident {
		return nil // another has come in its place, which will be heard of
	}
	a := p.attrs
	s.view(&a)
	n.mu.Lock()
	told, truth := n.told, stampOf(&a)
	truth.at = now()
	n.told = truth
	n.mu.Unlock()
	if op := difference(told, truth, n.kind, c.kinds); op != "" {
		return s.expectChange(c.dir, c.name, n, op, p.attrs)
	}
	return nil
}

// difference says which operation tells of the difference between two states of a file of which one was told and the other is
// true now.
func difference(told, truth stamp, kind uint32, k kinds) string {
	if !told.known {
		return ""
	}
	owner := told.mode != truth.mode || told.uid != truth.uid || told.gid != truth.gid
	if kind != unix.S_IFREG {
		if owner || kind != unix.S_IFDIR && k.has(notify.Attributes) && told.ctime != truth.ctime {
			return guestapi.ReplayAttrib
		}
		return ""
	}
	content := told.size != truth.size || told.mtime != truth.mtime
	switch {
	case content && (k.has(notify.Modified) || told.size != truth.size || !k.has(notify.Attributes)):
		return guestapi.ReplayModify
	case content || owner || k.has(notify.Attributes) && told.ctime != truth.ctime:
		return guestapi.ReplayAttrib
	case k.has(notify.Modified) && !told.own && within(told, tick):
		return guestapi.ReplayModify // changed twice at one time of its clock
	}
	return ""
}

// within says whether a state was noted so soon after it came to be that another one can look the same.
func within(s stamp, d time.Duration) bool {
	noted := time.Unix(s.at.sec, int64(s.at.nsec))
	return noted.Sub(time.Unix(s.mtime.sec, int64(s.mtime.nsec))) < d
}

// compareSelf compares the attributes of a directory itself: of a share's root, which no other directory tells of.
func (s *Server) compareSelf(dir *node) *expectation {
	p, st := s.find(dir)
	if st != fuse.OK {
		return nil
	}
	p.close()
	a := p.attrs
	s.view(&a)
	dir.mu.Lock()
	told := dir.told
	dir.told = stampOf(&a)
	dir.told.at = now()
	dir.mu.Unlock()
	if difference(told, stampOf(&a), unix.S_IFDIR, 0) == "" {
		return nil
	}
	return s.expectSelf(dir, p.attrs)
}

// expectSelf has the guest look at a directory anew.
func (s *Server) expectSelf(dir *node, a attrs) *expectation {
	if dir == dir.share.root {
		return s.expectChange(dir, "", dir, guestapi.ReplayAttrib, a)
	}
	s.tree.mu.RLock()
	var l link
	if len(dir.links) > 0 {
		l = dir.links[0]
	}
	s.tree.mu.RUnlock()
	if l.dir == nil {
		return nil
	}
	return s.expectChange(l.dir, l.name, dir, guestapi.ReplayAttrib, a)
}

// outdated returns what has the guest look at a directory anew whose listing it keeps, although entries changed which it was
// told of in answers and not by a replay; nil if there is no need.
func (s *Server) outdated(dir *node) *expectation {
	if dir.share.gone.Load() || s.changes.waits(dir) {
		return nil
	}
	dir.mu.Lock()
	shown := dir.shown
	dir.mu.Unlock()
	if !shown.known {
		return nil
	}
	p, st := s.find(dir)
	if st != fuse.OK {
		return nil
	}
	p.close()
	if p.mtime == shown.mtime {
		return nil
	}
	return s.expectSelf(dir, p.attrs)
}

// compareMove returns the rename that a pair of changes is, or nil if it is none: each is then looked into by itself.
func (s *Server) compareMove(from, to *change) *expectation {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.void(from.dir) || s.void(to.dir) {
		return nil
	}
	first, second := from.dir, to.dir
	if first.id > second.id {
		first, second = second, first
	}
	one := s.openTruth(first)
	defer one.close()
	two := one
	if second != first {
		two = s.openTruth(second)
		defer two.close()
	}
	if to.dir != two.dir {
		one, two = two, one
	}
	a, found := two.look(to.name)
	old, again := one.look(from.name)
	if !found || again && old.ident == a.ident || a.ident == from.dir.share.root.ident {
		return nil
	}
	e := &expectation{dir: from.dir, name: from.name, toDir: to.dir, toName: to.name, attrs: a}
	e.replay.Op = guestapi.ReplayRename
	ok := false
	s.change(func(t *tree) {
		source := from.dir.names[from.name]
		e.replaced = to.dir.names[to.name]
		_, ours := from.dir.dir.removed[from.name]
		if source == nil && ours || source != nil && source.ident != a.ident ||
			e.replaced != nil && e.replaced.ident == a.ident {
			return
		}
		var okTo bool
		e.replay.Path, ok = t.place(from.dir, from.name)
		e.replay.To, okTo = t.place(to.dir, to.name)
		if ok = ok && okTo; !ok {
			return
		}
		if e.node = source; source == nil {
			e.node = t.intern(from.dir.share, a.ident, a.kind())
			t.link(from.dir, from.name, e.node)
		}
		t.rename(from.dir, from.name, to.dir, to.name, false)
		if e.replaced != nil {
			e.replaced.loses(to.dir, to.name)
		}
		delete(to.dir.dir.removed, to.name)
	})
	if !ok {
		return nil
	}
	return e
}
