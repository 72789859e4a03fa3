package share

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// How long the guest may remember what it was told, if it hears of changes.
const (
	long  = time.Hour
	brief = time.Second // attributes of what has several names: a change through another one is not heard of
)

// stamp is what tells two states of a file apart.
type stamp struct {
	size           uint64
	mtime, ctime   moment
	mode, uid, gid uint32 // as the guest sees them
	known          bool
	own            bool   // the guest made this state
	at             moment // when this was noted; zero where it does not matter
}

// stampOf takes what view left.
func stampOf(a *attrs) stamp {
	return stamp{size: a.size, mtime: a.mtime, ctime: a.ctime, mode: a.mode, uid: a.uid, gid: a.gid, known: true}
}

func now() moment {
	t := time.Now()
	return moment{t.Unix(), uint32(t.Nanosecond())}
}

// sameContent says whether the guest's pages of the one state can be those of the other.
func (s stamp) sameContent(o stamp) bool {
	return s.known && o.known && s.size == o.size && s.mtime == o.mtime && s.ctime == o.ctime
}

// shows notes that the guest is shown a of n. What watchers have heard of does not change by it, unless it is the first sight.
func (n *node) shows(a *attrs) {
	s := stampOf(a)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shown = s
	if !n.told.known {
		s.at = now()
		n.told = s
	}
}

// made notes a state of n that the guest itself made. Its cache may not be as new yet.
func (n *node) made(a *attrs) {
	s := stampOf(a)
	s.own = true
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told, n.shown = s, s
}

// unshown notes that the guest holds its attributes of n for outdated, by what it did itself.
func (n *node) unshown() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shown.known = false
}

// trusted says whether the guest hears of what changes in dir, so that it may remember for long. grace is how many changes may
// be on their way: that which the answer is part of.
func (s *Server) trusted(dir *node, grace int32) bool {
	d := dir.dir
	return d.watched.Load() && d.pending.Load() <= grace && !d.doubtful.Load() && s.replays.live.Load() > 0
}

// attrTimeout says how long attributes a of n may be remembered.
func (s *Server) attrTimeout(n *node, a *attrs, grace int32) time.Duration {
	if n.kind == unix.S_IFDIR && !s.trusted(n, grace) {
		return 0
	}
	if n == n.share.root {
		return long
	}
	if a.ident != n.ident {
		return 0 // its successor, which is known by another number too
	}
	dir := s.tree.dirOf(n)
	switch {
	case dir == nil || !s.trusted(dir, grace):
		return 0
	case n.kind != unix.S_IFDIR && a.nlink > 1:
		return brief
	}
	return long
}

// dirOf returns the directory that n was last seen in; nil if it has no name.
func (t *tree) dirOf(n *node) *node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if len(n.links) == 0 {
		return nil
	}
	return n.links[len(n.links)-1].dir
}

// fill writes a, which view has gone over, as the guest's attributes.
func (s *Server) fill(out *fuse.Attr, a *attrs) {
	*out = fuse.Attr{
		Ino: s.devices.inode(a.ident), Size: a.size, Blocks: a.blocks, Mode: a.mode, Nlink: a.nlink, Rdev: a.rdev, Blksize: a.blksize,
		Owner: fuse.Owner{Uid: a.uid, Gid: a.gid},
		Atime: uint64(a.atime.sec), Atimensec: a.atime.nsec,
		Mtime: uint64(a.mtime.sec), Mtimensec: a.mtime.nsec,
		Ctime: uint64(a.ctime.sec), Ctimensec: a.ctime.nsec,
	}
}

// blur has the time of a directory that is not watched, and that changed so lately that it can change again without a new
// time, be another one in each answer. The guest's kernel keeps a listing for as long as the time is the same.
func (s *Server) blur(n *node, out *fuse.Attr, a *attrs) {
	if n.kind == unix.S_IFDIR && !n.dir.watched.Load() && a.fresh() {
		out.Mtimensec = out.Mtimensec&^0x3ff | uint32(s.answers.Add(1))&0x3ff
	}
}

// fresh says whether a changed within the last tick.
func (a *attrs) fresh() bool {
	return time.Since(time.Unix(a.mtime.sec, int64(a.mtime.nsec))) < tick
}

// entry fills the answer that name in dir is n with the host's attributes a.
func (s *Server) entry(out *fuse.EntryOut, dir, n *node, a attrs, grace int32) {
	s.view(&a)
	n.shows(&a)
	out.NodeId = n.id
	s.fill(&out.Attr, &a)
	s.blur(n, &out.Attr, &a)
	if s.trusted(dir, grace) {
		out.SetEntryTimeout(long)
	}
	out.SetAttrTimeout(s.attrTimeout(n, &a, grace))
}

// attributes fills an answer about n, which the host has as a.
func (s *Server) attributes(out *fuse.AttrOut, n *node, a attrs, grace int32) {
	s.view(&a)
	n.shows(&a)
	s.fill(&out.Attr, &a)
	s.blur(n, &out.Attr, &a)
	out.SetTimeout(s.attrTimeout(n, &a, grace))
}
