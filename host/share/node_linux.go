package share

import (
	"strings"
	"sync"
	"sync/atomic"

	"github.com/coracle-engine/coracle/host/share/notify"
	"golang.org/x/sys/unix"
)

// moment is a time of the host's file system.
type moment struct {
	sec  int64
	nsec uint32
}

// ident is what makes a file the same file.
type ident struct {
	dev, ino uint64
	birth    moment // zero where the file system does not know it
}

func (i ident) owner() ownerKey { return ownerKey{i.ino, i.birth.sec, i.birth.nsec} }

// key is an ident within a share: two shares that overlap do not mix, since one may be read-only or show less.
type key struct {
	share *share
	ident ident
}

// link is a place where a node was seen.
type link struct {
	dir  *node
	name string
}

// node is a file of the host that the guest knows, or may have forgotten in a directory that it knows. It holds no descriptor:
// its links say where it was last seen, and who goes there checks that it is still the same.
type node struct {
	id    uint64 // the guest's number for it, never used again
	share *share // nil: the device's root
	ident ident
	kind  uint32     // S_IFMT
	dir   *directory // of directories

	// Guarded by tree.mu. A link says the same as the names of its directory, from the other end.
	links    []link
	lost     link             // of a file: its last name, if the host took that away or put another file in its place
	names    map[string]*node // what the guest was told is in a directory
	lookups  uint64           // how often the guest was told of the node, less what it forgot
	children int              // held nodes that have a link in this directory
	handles  []*handle

	// content is held shared around an own change of content or attributes and the note of it in told, and alone while the
	// host's changes are compared with told.
	content sync.RWMutex

	mu    sync.Mutex // guards what follows
	told  stamp      // what watchers in the guest have heard of
	shown stamp      // what the guest was last shown, which its cache goes by
}

// directory is what a node has that is a directory.
type directory struct {
	// mu is held around every own change of an entry, and while the host's changes are compared with names. Two directories
	// are locked in the order of their nodes' numbers.
	mu      sync.Mutex
	version atomic.Uint64       // of the entries: odd while mu is held for a change or a comparison
	removed map[string]struct{} // names that the guest took away, whose events are still to come; guarded by mu

	watched  atomic.Bool  // changes are heard of
	pending  atomic.Int32 // changes heard of that the guest does not know yet
	doubtful atomic.Bool  // the guest could not be told of one: nothing may be remembered for long any more
	watch    notify.ID    // guarded by the server's watches.mu
	refused  atomic.Bool  // a watch could not be had
}

// held says whether the guest can still ask for n.
func (n *node) held() bool {
	return n.lookups > 0 || n.children > 0 || len(n.handles) > 0 || n.share == nil || n.share.root == n
}

// tree is the set of nodes and how they hang together. No system call is made under its lock.
type tree struct {
	mu     sync.RWMutex
	last   uint64
	byID   map[uint64]*node
	byKey  map[key]*node
	unheld []*node // directories that nobody holds any more and whose watches are to end
}

func newTree() *tree {
	return &tree{last: 1 << 16, byID: map[uint64]*node{}, byKey: map[key]*node{}}
}

func (t *tree) get(id uint64) *node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

// intern returns the node of a file, new or known. Call with mu held; the node must gain a lookup or a handle before mu is let
// go.
func (t *tree) intern(s *share, id ident, kind uint32) *node {
	n := t.byKey[key{s, id}]
	if n == nil || n.kind != kind {
		t.last++
		n = &node{id: t.last, share: s, ident: id, kind: kind}
		if kind == sIFDIR {
			n.dir = &directory{}
		}
		t.byKey[key{s, id}], t.byID[n.id] = n, n
	}
	return n
}

// hold changes a count of n and what follows from it in n's directories. Call with mu held.
func (t *tree) hold(n *node, change func()) {
	was := n.held()
	change()
	now := n.held()
	if was == now {
		return
	}
	step := 1
	if !now {
		step = -1
	}
	for _, l := range n.links {
		t.hold(l.dir, func() { l.dir.children += step })
	}
	if !now {
		t.drop(n)
	}
}

// drop forgets what the guest, which cannot ask for n any more, knew beneath it.
func (t *tree) drop(n *node) {
	for name, child := range n.names {
		child.links = without(child.links, link{n, name})
		if len(child.links) == 0 && !child.held() {
			t.remove(child)
		}
	}
	n.names = nil
	if n.dir != nil {
		t.unheld = append(t.unheld, n)
	}
	if len(n.links) == 0 {
		t.remove(n)
	}
}

func (t *tree) remove(n *node) {
	if t.byID[n.id] == n {
		delete(t.byID, n.id)
	}
	if k := (key{n.share, n.ident}); t.byKey[k] == n {
		delete(t.byKey, k)
	}
}

// link notes that name in dir is n. Call with mu held. A directory is in one place only.
func (t *tree) link(dir *node, name string, n *node) {
	if old := dir.names[name]; old == n {
		return
	} else if old != nil {
		t.unlink(dir, name)
		old.loses(dir, name)
	}
	n.lost = link{}
	if n.kind == sIFDIR {
		for len(n.links) > 0 {
			t.unlink(n.links[0].dir, n.links[0].name)
		}
	}
	if dir.names == nil {
		dir.names = map[string]*node{}
	}
	dir.names[name] = n
	n.links = append(n.links, link{dir, name})
	if n.held() {
		t.hold(dir, func() { dir.children++ })
	}
}

// unlink notes that name is not in dir any more, and returns what it was. Call with mu held.
func (t *tree) unlink(dir *node, name string) *node {
	n := dir.names[name]
	if n == nil {
		return nil
	}
	delete(dir.names, name)
	n.links = without(n.links, link{dir, name})
	if n.held() {
		t.hold(dir, func() { dir.children-- })
	} else if len(n.links) == 0 {
		t.remove(n)
	}
	return n
}

// loses notes that the host took the name away from n. Call with mu held.
func (n *node) loses(dir *node, name string) {
	if n.kind == unix.S_IFREG && len(n.links) == 0 {
		n.lost = link{dir, name}
	}
}

func without(links []link, gone link) []link {
	for i, l := range links {
		if l == gone {
			return append(links[:i:i], links[i+1:]...)
		}
	}
	return links
}

// maxDepth bounds a path; what the host moved about while we did not know may hang together in a circle.
const maxDepth = 2048

// path returns where the node's i-th link leads, relative to its share's root, which is ".". False when there is no such link,
// or when it does not lead to the root.
func (t *tree) path(n *node, i int) (string, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.pathLocked(n, i)
}

func (t *tree) pathLocked(n *node, i int) (string, bool) {
	if n == n.share.root {
		return ".", i == 0
	}
	if i >= len(n.links) {
		return "", false
	}
	l := n.links[i]
	if l.dir == n.share.root {
		return l.name, true
	}
	names := append(make([]string, 0, 16), l.name)
	for at := l.dir; at != n.share.root; at = at.links[0].dir {
		if len(at.links) == 0 || len(names) > maxDepth {
			return "", false
		}
		names = append(names, at.links[0].name)
	}
	var b strings.Builder
	for j := len(names) - 1; j >= 0; j-- {
		if b.Len() > 0 {
			b.WriteByte('/')
		}
		b.WriteString(names[j])
	}
	return b.String(), true
}
