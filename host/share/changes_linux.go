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

// changes are what is to be looked into, in the order in which it was first heard of. Two changes are looked into at a time
// only if they are in different directories; one about a directory only alone, since it moves the paths of others.
type changes struct {
	quit chan struct{}
	once sync.Once // for closing quit

	mu      sync.Mutex
	more    *sync.Cond
	byName  map[*node]map[string]*change // waiting
	queue   []*change
	moves   map[uint32]*change // waiting, by cookie: moved from, and not heard where to
	busy    map[*node]bool
	workers int // changes that are being looked into
	alone   bool
}

func (c *changes) init() {
	c.quit = make(chan struct{})
	c.more = sync.NewCond(&c.mu)
	c.byName, c.moves, c.busy = map[*node]map[string]*change{}, map[uint32]*change{}, map[*node]bool{}
}

// clear forgets all that waits.
func (c *changes) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, one := range c.queue {
		if !one.taken {
			one.dir.dir.pending.Add(-1)
		}
	}
	clear(c.byName)
	clear(c.moves)
	c.queue = nil
}

// add notes that something was heard of name in dir. What was heard of it before and still waits becomes one with it.
func (c *changes) add(dir *node, name string, k kinds, isDir bool, cookie uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := c.byName[dir]
	if names == nil {
		names = map[string]*change{}
		c.byName[dir] = names
	}
	one := names[name]
	if one == nil {
		one = &change{dir: dir, name: name}
		names[name] = one
		c.queue = append(c.queue, one)
		dir.dir.pending.Add(1)
	}
	one.kinds |= k
	one.isDir = isDir
	switch {
	case k.has(notify.MovedFrom):
		c.moves[cookie] = one
	case k.has(notify.MovedTo):
		from := c.moves[cookie]
		delete(c.moves, cookie)
		if from != nil && from != one && !from.taken && from.mate == nil && one.mate == nil && from.dir.share == dir.share {
			from.mate, one.mate, one.to = one, from, true
		}
	}
	c.more.Signal()
}

// push has a change looked into once more, before all others.
func (c *changes) push(one *change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	one.taken = false
	one.dir.dir.pending.Add(1)
	c.queue = append([]*change{one}, c.queue...)
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
	if c.alone {
		return nil
	}
	for i := 0; i < len(c.queue); i++ {
		one := c.queue[i]
		if one.taken {
			if i == 0 {
				c.queue, i = c.queue[1:], -1
			}
			continue
		}
		alone := one.isDir || one.mate != nil && one.mate.isDir
		if alone && c.workers > 0 {
			return nil // its turn comes when the others are done
		}
		if c.busy[one.dir] || one.mate != nil && c.busy[one.mate.dir] {
			continue
		}
		c.workers++
		c.alone = alone
		for _, each := range []*change{one, one.mate} {
			if each != nil {
				each.taken, c.busy[each.dir] = true, true
				if c.byName[each.dir][each.name] == each {
					delete(c.byName[each.dir], each.name)
				}
				if len(c.byName[each.dir]) == 0 {
					delete(c.byName, each.dir)
				}
			}
		}
		return one
	}
	return nil
}

// done is the end of take. quiet says for each directory whether nothing waits there.
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
	return len(c.byName[dir]) > 0
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
		for _, dir := range s.watches.all() {
			s.suspect(dir)
		}
	case notify.Gone:
		s.watches.ended(e.ID)
	default:
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
