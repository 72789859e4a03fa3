package share

import (
	"strings"
	"sync"
	"sync/atomic"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// expectation is the one operation that a replaying thread is about to make: a change that the host made already. Its requests
// are acknowledged and touch nothing; every other change by that thread is refused.
type expectation struct {
	replay guestapi.Replay
	dir    *node // of Path
	name   string
	toDir  *node // of To
	toName string

	node     *node // what is made, taken away, moved or changed
	attrs    attrs // of node when it was last seen, as the host has them
	replaced *node // by a rename

	used atomic.Bool // the operation came
}

// stream is one thread of the guest that replays. Its expectation is nil between two operations.
type stream struct {
	expects atomic.Pointer[expectation]
}

// replays are the streams that there are.
type replays struct {
	streams int // how many there should be
	live    atomic.Int32
	mu      sync.Mutex // for changes of threads
	threads atomic.Pointer[map[uint32]*stream]
}

// of says whether the thread pid is one that replays, and what it is about to do.
func (r *replays) of(pid uint32) (e *expectation, mine bool) {
	threads := r.threads.Load()
	if threads == nil || pid == 0 {
		return nil, false
	}
	st, mine := (*threads)[pid]
	if !mine {
		return nil, false
	}
	return st.expects.Load(), true
}

// set has pid be a replaying thread from now on; with a nil stream no more.
func (r *replays) set(pid uint32, st *stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := map[uint32]*stream{}
	if old := r.threads.Load(); old != nil {
		for k, v := range *old {
			next[k] = v
		}
	}
	if st == nil {
		delete(next, pid)
	} else {
		next[pid] = st
	}
	r.threads.Store(&next)
	r.live.Store(int32(len(next)))
}

// at says whether the expectation is about name in the directory id, as the first or only place of op.
func (e *expectation) at(id uint64, name string, ops ...string) bool {
	if e == nil || e.dir == nil || e.dir.id != id || e.name != name {
		return false
	}
	for _, op := range ops {
		if e.replay.Op == op {
			return true
		}
	}
	return false
}

// lookupReplayed answers a lookup by a replaying thread, where the guest's kernel must see the world as it was before the
// change, to make it.
func (s *Server) lookupReplayed(e *expectation, id uint64, name string, out *fuse.EntryOut) (fuse.Status, bool) {
	switch {
	case e.used.Load():
		return 0, false
	case e.at(id, name, guestapi.ReplayCreate, guestapi.ReplayMkdir, guestapi.ReplayLink):
		return fuse.ENOENT, true
	case e.at(id, name, guestapi.ReplayUnlink, guestapi.ReplayRmdir, guestapi.ReplayRename):
		s.past(out, e.node, e.attrs)
		return fuse.OK, true
	case e.toDir != nil && e.toDir.id == id && e.toName == name:
		if e.replaced == nil {
			return fuse.ENOENT, true
		}
		s.past(out, e.replaced, e.replaced.lastSeen())
		return fuse.OK, true
	}
	return 0, false
}

// past answers with a node as it was. None of it may be remembered.
func (s *Server) past(out *fuse.EntryOut, n *node, a attrs) {
	s.change(func(t *tree) {
		t.byID[n.id] = n
		t.hold(n, func() { n.lookups++ })
	})
	s.view(&a)
	out.NodeId = n.id
	s.fill(&out.Attr, &a)
}

// makeReplayed acknowledges a CREATE, MKDIR, MKNOD or SYMLINK with what the host made. A directory is not watched before the
// guest comes to it: who copies a tree on the host has nobody hear of more than its top.
func (s *Server) makeReplayed(e *expectation, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if !e.at(in.NodeId, name, guestapi.ReplayCreate, guestapi.ReplayMkdir, guestapi.ReplayLink) || e.used.Swap(true) {
		return fuse.EIO
	}
	e.dir.unshown()
	dir, at, st := s.findDir(e.dir.id)
	if st != fuse.OK {
		s.past(out, e.node, e.attrs)
		return fuse.OK
	}
	defer at.close()
	a, st := s.look(dir, at.fd, name)
	if st != fuse.OK || a.ident != e.node.ident {
		s.past(out, e.node, e.attrs) // it is gone again: that will be heard of
		return fuse.OK
	}
	s.change(func(t *tree) {
		t.byID[e.node.id] = e.node
		t.hold(e.node, func() { e.node.lookups++ })
	})
	s.entry(out, dir, e.node, a, 1)
	return fuse.OK
}

// removeReplayed acknowledges an UNLINK or RMDIR.
func (s *Server) removeReplayed(e *expectation, in *fuse.InHeader, name string) fuse.Status {
	if !e.at(in.NodeId, name, guestapi.ReplayUnlink, guestapi.ReplayRmdir) || e.used.Swap(true) {
		return fuse.EIO
	}
	e.dir.unshown()
	return fuse.OK
}

// renameReplayed acknowledges a RENAME.
func (s *Server) renameReplayed(e *expectation, in *fuse.RenameIn, from, to string) fuse.Status {
	if !e.at(in.NodeId, from, guestapi.ReplayRename) || e.toDir.id != in.Newdir || e.toName != to || in.Flags != 0 ||
		e.used.Swap(true) {
		return fuse.EIO
	}
	e.dir.unshown()
	e.toDir.unshown()
	return fuse.OK
}

// setAttrReplayed acknowledges a SETATTR with the true attributes. After a change of content the time is wrong on purpose and
// not to be remembered: the thread asks again, the guest's kernel sees a time that is not the one it had, and drops its pages.
func (s *Server) setAttrReplayed(e *expectation, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if e == nil || e.node.id != in.NodeId {
		return fuse.EIO
	}
	want := uint32(fuse.FATTR_MODE)
	if e.replay.Op == guestapi.ReplayModify {
		want = fuse.FATTR_SIZE
	} else if e.replay.Op != guestapi.ReplayAttrib {
		return fuse.EIO
	}
	if in.Valid&want == 0 || e.used.Swap(true) {
		return fuse.EIO
	}
	p, st := s.find(e.node)
	if st != fuse.OK {
		return st
	}
	defer p.close()
	s.attributes(out, e.node, p.attrs, 1)
	if want == fuse.FATTR_SIZE {
		out.Mtimensec ^= 1
		out.SetTimeout(0)
		e.node.unshown()
	}
	return fuse.OK
}

// place is a path as the guest's replayer takes it.
func (t *tree) place(dir *node, name string) ([]byte, bool) {
	p, ok := t.pathLocked(dir, 0)
	if !ok {
		return nil, false
	}
	var b strings.Builder
	b.WriteString(dir.share.Tag)
	if p != "." {
		b.WriteString("/" + p)
	}
	if name != "" {
		b.WriteString("/" + name)
	}
	return []byte(b.String()), true
}
