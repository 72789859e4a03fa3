package share

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// handle is a file that the guest has open.
type handle struct {
	id    uint64
	node  *node
	fd    int
	write bool // fd is open for writing

	all   *handles
	users atomic.Int64
}

// release takes back one use; the last one closes the descriptor.
func (h *handle) release() {
	if h.users.Add(-1) == 0 {
		unix.Close(h.fd)
		h.all.count.Add(-1)
	}
}

// handles are all open files. They are spread out, so that no lock is everybody's.
type handles struct {
	limit  int64
	count  atomic.Int64
	last   atomic.Uint64
	left   leavings
	shards [16]struct {
		mu   sync.RWMutex
		byID map[uint64]*handle
	}
}

// handleLimit is how many files the guest can have open: it leaves descriptors for the rest of the process.
func handleLimit() int64 {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 512
	}
	return int64(min(r.Cur/4*3, 1<<20))
}

// reserve makes room for one more; the caller opens a handle, or takes one back from count.
func (t *handles) reserve() bool {
	if t.count.Add(1) > t.limit {
		t.count.Add(-1)
		return false
	}
	return true
}

// add takes over fd, for which there is a reservation.
func (t *handles) add(n *node, fd int, write bool) *handle {
	h := &handle{id: t.last.Add(1), node: n, fd: fd, write: write, all: t}
	h.users.Store(1)
	shard := &t.shards[h.id%16]
	shard.mu.Lock()
	defer shard.mu.Unlock()
	if shard.byID == nil {
		shard.byID = map[uint64]*handle{}
	}
	shard.byID[h.id] = h
	return h
}

// get returns the handle id of the node with number n, which the caller releases; nil if there is none.
func (t *handles) get(id, n uint64) *handle {
	shard := &t.shards[id%16]
	shard.mu.RLock()
	defer shard.mu.RUnlock()
	h := shard.byID[id]
	if h == nil || h.node.id != n {
		return nil
	}
	h.users.Add(1)
	return h
}

// close ends the handle id and returns it, if there was one; its descriptor lives while it is used.
func (t *handles) close(id uint64) *handle {
	shard := &t.shards[id%16]
	shard.mu.Lock()
	h := shard.byID[id]
	delete(shard.byID, id)
	shard.mu.Unlock()
	if h != nil {
		h.release()
	}
	return h
}

func (t *handles) closeAll() {
	for i := range t.shards {
		shard := &t.shards[i]
		shard.mu.Lock()
		all := shard.byID
		shard.byID = nil
		shard.mu.Unlock()
		for _, h := range all {
			h.release()
		}
	}
}

// opened notes h as one that its node has open. Call with mu held.
func (t *tree) opened(h *handle) {
	t.hold(h.node, func() { h.node.handles = append(h.node.handles, h) })
}

// closed is the end of opened. Call with mu held.
func (t *tree) closed(h *handle) {
	t.hold(h.node, func() {
		list := h.node.handles
		for i := range list {
			if list[i] == h {
				h.node.handles = append(list[:i:i], list[i+1:]...)
				break
			}
		}
	})
}

// handleOf returns something that n has open, for writing if that is asked for, which the caller releases; nil if there is
// nothing.
func (t *tree) handleOf(n *node, write bool) *handle {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, h := range n.handles {
		if write && !h.write {
			continue
		}
		if users := h.users.Load(); users > 0 && h.users.CompareAndSwap(users, users+1) {
			return h
		}
	}
	return nil
}

// holds says whether the guest can still ask for n.
func (t *tree) holds(n *node) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return n.held()
}
