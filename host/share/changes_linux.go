package share

import (
	"context"
	"os"
	"sync"

	"github.com/coracle-engine/coracle/host/share/notify"
	"golang.org/x/sys/unix"
)

// change is what was heard about one name in a directory and not yet looked into. It only says where to look.
type change struct {
	dir   *node
	name  string // empty: the directory itself
	kinds kinds
	isDir bool
	mate  *change // the other end of a rename; each points to the other
	to    bool    // it is the end where the file is now
	taken bool
	whole bool // too much was heard: all of the directory is to be looked into

	cookie uint32 // of the last MovedFrom

	again *expectation // what was about to be replayed when a stream broke
}

// kinds is a set of notify.Kind.
type kinds uint16

func kind(list ...notify.Kind) (k kinds) {
	for _, one := range list {
		k |= 1 << one
	}
	return k
}

func (k kinds) has(list ...notify.Kind) bool { return k&kind(list...) != 0 }

// changes are what is to be looked into: directory by directory in turn, in each in the order in which it was first heard of.
// Two changes are looked into at a time only if they are in different directories; one about a directory only alone, since it
// moves the paths of others, and when nothing waits in it.
type changes struct {
	tree *tree
	quit chan struct{}
	once sync.Once // for closing quit

	mu      sync.Mutex
	more    *sync.Cond
	waiting map[*node]*waiting
	turns   []*node            // the keys of waiting
	moves   map[uint32]*change // waiting, by cookie: moved from, and not heard where to
	busy    map[*node]bool
	workers int // changes that are being looked into
	alone   bool
	count   int // changes that wait
}

// most is how many changes of one directory wait, and many how many of all: beyond, all of the directory is looked into instead,
// which takes no more memory than there are files. So much is heard of when the guest itself makes changes that nobody looks
// into, since it replays nothing.
const most, many = 1 << 14, 1 << 18

// waiting are the changes of one directory.
type waiting struct {
	list   []*change // those taken as the mate of another are left in it
	byName map[string]*change
}

func (c *changes) init(t *tree) {
	c.tree, c.quit = t, make(chan struct{})
	c.more = sync.NewCond(&c.mu)
	c.waiting, c.moves, c.busy = map[*node]*waiting{}, map[uint32]*change{}, map[*node]bool{}
}

// clear forgets all that waits.
func (c *changes) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for dir, w := range c.waiting {
		dir.dir.pending.Add(-int32(len(w.byName)))
	}
	clear(c.waiting)
	clear(c.moves)
	c.turns, c.count = nil, 0
}

// of returns what waits in dir. Call with mu held.
func (c *changes) of(dir *node) *waiting {
	w := c.waiting[dir]
	if w == nil {
		w = &waiting{byName: map[string]*change{}}
		c.waiting[dir] = w
		c.turns = append(c.turns, dir)
	}
	return w
}

// add notes that something was heard of name in dir. What was heard of it before and still waits becomes one with it.
func (c *changes) add(dir *node, name string, k kinds, isDir bool, cookie uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.of(dir)
	one := w.byName[name]
	if one == nil && (len(w.byName) >= most || c.count >= many) {
		c.collapse(dir)
		return
	}
	if one == nil {
		one = &change{dir: dir, name: name}
		c.wait(w, one)
	}
	one.kinds |= k
	one.isDir = isDir
	switch {
	case k.has(notify.MovedFrom):
		c.moves[cookie], one.cookie = one, cookie
	case k.has(notify.MovedTo):
		from := c.moves[cookie]
		delete(c.moves, cookie)
		if from != nil && from != one && !from.taken && from.mate == nil && one.mate == nil && from.dir.share == dir.share {
			from.mate, one.mate, one.to = one, from, true
		}
	}
	c.more.Signal()
}

// wait adds a change at the end of w. Call with mu held.
func (c *changes) wait(w *waiting, one *change) {
	w.byName[one.name] = one
	w.list = append(w.list, one)
	one.dir.dir.pending.Add(1)
	c.count++
}

// collapse puts one change in the place of all that wait in dir. Call with mu held.
func (c *changes) collapse(dir *node) {
	w := c.of(dir)
	for _, one := range w.byName {
		if one.mate != nil {
			one.mate.mate, one.mate = nil, nil
		}
		one.taken = true
		delete(c.moves, one.cookie)
	}
	dir.dir.pending.Add(-int32(len(w.byName)))
	c.count -= len(w.byName)
	w.list, w.byName = nil, map[string]*change{}
	c.wait(w, &change{dir: dir, whole: true, isDir: true})
	c.more.Signal()
}

// again has a change, of which e was about to be replayed when its stream broke, looked into once more, before all others of
// its directory.
func (c *changes) again(one *change, e *expectation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.of(one.dir)
	k := one.kinds
	if later := w.byName[one.name]; later != nil {
		one = later
		one.kinds |= k
	} else {
		one = &change{dir: one.dir, name: one.name, kinds: k, isDir: one.isDir}
		c.wait(w, one)
		w.list = append([]*change{one}, w.list[:len(w.list)-1]...)
	}
	one.again = e
	c.more.Signal()
}

// take waits for the next change that can be looked into. It is nil when ctx ends or the server does.
func (c *changes) take(ctx context.Context) *change {
	defer context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.more.Broadcast()
	})()
	c.mu.Lock()
	defer c.mu.Unlock()
	for ctx.Err() == nil {
		if one := c.next(); one != nil {
			return one
		}
		c.more.Wait()
	}
	return nil
}

// next takes the first change that can be looked into. Call with mu held.
func (c *changes) next() *change {
	for i := 0; i < len(c.turns) && !c.alone; i++ {
		dir := c.turns[i]
		w := c.waiting[dir]
		for len(w.list) > 0 && w.list[0].taken {
			w.list = w.list[1:]
		}
		if len(w.list) > 0 && !c.ready(w.list[0]) {
			continue
		}
		c.turns = append(c.turns[:i:i], c.turns[i+1:]...)
		i--
		if len(w.list) == 0 {
			delete(c.waiting, dir)
			continue
		}
		one := w.list[0]
		w.list = w.list[1:]
		c.turns = append(c.turns, dir)
		c.workers++
		c.alone = one.aboutDirectory()
		for _, each := range []*change{one, one.mate} {
			if each != nil {
				each.taken, c.busy[each.dir] = true, true
				delete(c.waiting[each.dir].byName, each.name)
				delete(c.moves, each.cookie)
				c.count--
			}
		}
		return one
	}
	return nil
}

func (one *change) aboutDirectory() bool { return one.isDir || one.mate != nil && one.mate.isDir }

// ready says whether a change can be looked into now. Call with mu held.
func (c *changes) ready(one *change) bool {
	if one.aboutDirectory() {
		if c.workers > 0 {
			return false
		}
		c.tree.mu.RLock()
		child := one.dir.names[one.name]
		c.tree.mu.RUnlock()
		if w := c.waiting[child]; w != nil && len(w.byName) > 0 && one.name != "" {
			return false
		}
	}
	return !c.busy[one.dir] && (one.mate == nil || !c.busy[one.mate.dir])
}

// done is the end of take.
func (c *changes) done(one *change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.workers--
	c.alone = false
	for _, each := range []*change{one, one.mate} {
		if each != nil {
			delete(c.busy, each.dir)
			each.dir.dir.pending.Add(-1)
		}
	}
	c.more.Broadcast()
}

// waits says whether something is still to be looked into in dir.
func (c *changes) waits(dir *node) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.waiting[dir]
	return w != nil && len(w.byName) > 0
}

// listen notes what the watcher hears, until it or the server ends.
func (s *Server) listen(events <-chan []notify.Event) {
	for {
		select {
		case <-s.changes.quit:
			return
		case batch, ok := <-events:
			if !ok {
				return
			}
			for _, e := range batch {
				s.heard(e)
			}
		}
	}
}

func (s *Server) heard(e notify.Event) {
	switch e.Kind {
	case notify.Overflow:
		s.log.Debug("changes were lost: all known directories are compared")
		s.adoptAll()
		for _, dir := range s.watches.all() {
			s.suspect(dir)
		}
	case notify.Gone:
		s.watches.ended(e.ID)
	default:
		for _, sh := range s.watches.replaced(e) {
			s.adopt(sh)
		}
		for _, dir := range s.watches.of(e.ID) {
			if e.Name == "" && dir != dir.share.root {
				continue // the directory above is told too
			}
			if e.Name != "" && s.conceals(dir, e.Name) {
				continue
			}
			s.changes.add(dir, e.Name, kind(e.Kind), e.IsDir, e.Cookie)
		}
	}
}

// suspect has all of a directory looked into: what the guest was told of, and what is new.
func (s *Server) suspect(dir *node) {
	dir.dir.mu.Lock()
	dir.dir.removed = nil
	dir.dir.mu.Unlock()
	s.changes.add(dir, "", kind(notify.Attributes), true, 0)
	known := map[string]bool{}
	s.tree.mu.RLock()
	for name, n := range dir.names {
		known[name] = n.kind == unix.S_IFDIR
	}
	s.tree.mu.RUnlock()
	for name, isDir := range known {
		s.changes.add(dir, name, kind(notify.Modified), isDir, 0)
	}
	at, st := s.find(dir)
	if st != 0 {
		return
	}
	defer at.close()
	dir.mu.Lock()
	same := dir.shown.known && dir.shown.mtime == at.mtime
	dir.mu.Unlock()
	if same {
		return
	}
	fd, err := reopen(at.fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), "directory")
	defer f.Close()
	entries, _ := f.ReadDir(-1)
	for _, e := range entries {
		if _, ok := known[e.Name()]; !ok && !s.conceals(dir, e.Name()) {
			s.changes.add(dir, e.Name(), kind(notify.Created), e.IsDir(), 0)
		}
	}
}
