package share

import (
	"errors"
	"sync"
	"sync/atomic"

	"github.com/coracle-engine/coracle/host/share/notify"
	"golang.org/x/sys/unix"
)

// watches says which nodes a watch is about: one directory can be in several shares.
type watches struct {
	watcher Watcher // nil: there is none
	full    atomic.Bool

	mu   sync.Mutex
	byID map[notify.ID][]*node

	above map[notify.ID][]*share // whose roots lie in a directory
}

// of returns the nodes that an event with this id is about.
func (w *watches) of(id notify.ID) []*node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]*node(nil), w.byID[id]...)
}

// all returns every watched node.
func (w *watches) all() []*node {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []*node
	for _, nodes := range w.byID {
		list = append(list, nodes...)
	}
	return list
}

// watch has changes in n heard of from now on; fd is open on it. A directory that cannot be watched is not remembered for
// long.
func (s *Server) watch(n *node, fd int) {
	w := &s.watches
	if n.dir.watched.Load() || n.dir.refused.Load() || w.watcher == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if n.dir.watched.Load() {
		return
	}
	id, err := w.watcher.Add(fd)
	if err != nil {
		n.dir.refused.Store(true)
		if errors.Is(err, notify.ErrFull) && !w.full.Swap(true) {
			s.log.Warn("no room for more watched directories: those beyond are read from the host each time",
				"hint", "raise fs.inotify.max_user_watches", "error", err)
		}
		return
	}
	n.dir.watch = id
	w.byID[id] = append(w.byID[id], n)
	n.dir.watched.Store(true)
}

// unwatch ends the watches of those of nodes that nobody holds, or that are void.
func (s *Server) unwatch(nodes []*node) {
	if len(nodes) == 0 || s.watches.watcher == nil {
		return
	}
	w := &s.watches
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range nodes {
		n.dir.refused.Store(false)
		if !n.dir.watched.Swap(false) {
			continue
		}
		if !n.share.gone.Load() && s.tree.holds(n) { // held again meanwhile, by somebody who took the watch for granted
			n.dir.watched.Store(true)
			continue
		}
		w.forget(n)
		if err := w.watcher.Remove(n.dir.watch); err != nil {
			s.log.Debug("end watch", "error", err)
		}
	}
}

// forget takes n from the nodes of its watch. Call with mu held.
func (w *watches) forget(n *node) {
	list := w.byID[n.dir.watch]
	for i := range list {
		if list[i] == n {
			list = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if w.byID[n.dir.watch] = list; len(list) == 0 {
		delete(w.byID, n.dir.watch)
	}
}

// ended notes that a watch is void, since its directory is gone.
func (w *watches) ended(id notify.ID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range w.byID[id] {
		n.dir.watched.Store(false)
	}
	delete(w.byID, id)
	delete(w.above, id)
}

// devices are the file systems that were seen.
type devices struct {
	mu    sync.RWMutex
	known map[uint64]device
}

type device struct {
	index  uint64
	unfile bool // it holds no files but doors into the host's kernel or its processes
}

// of returns what is known of the file system dev, which fd lies in.
func (d *devices) of(dev uint64, fd int) device {
	d.mu.RLock()
	known, ok := d.known[dev]
	d.mu.RUnlock()
	if ok {
		return known
	}
	var fs unix.Statfs_t
	known.unfile = unix.Fstatfs(fd, &fs) != nil || doors[int64(fs.Type)]
	d.mu.Lock()
	defer d.mu.Unlock()
	known.index = uint64(len(d.known))
	if old, ok := d.known[dev]; ok {
		known.index = old.index
	}
	d.known[dev] = known
	return known
}

// doors are file systems that a share does not lead into (linux/magic.h): what is written to a file of proc, for one, can be
// the memory of this process.
var doors = map[int64]bool{
	unix.PROC_SUPER_MAGIC: true, unix.SYSFS_MAGIC: true, unix.DEBUGFS_MAGIC: true, unix.TRACEFS_MAGIC: true,
	unix.SECURITYFS_MAGIC: true, unix.CGROUP_SUPER_MAGIC: true, unix.CGROUP2_SUPER_MAGIC: true, unix.BPF_FS_MAGIC: true,
	unix.SELINUX_MAGIC: true, unix.SMACK_MAGIC: true, unix.DEVPTS_SUPER_MAGIC: true, unix.PSTOREFS_MAGIC: true,
	unix.EFIVARFS_MAGIC: true, unix.BINFMTFS_MAGIC: true, unix.AUTOFS_SUPER_MAGIC: false,
}

// inode is the number that the guest shows for a file: the host's, told apart by file system.
func (d *devices) inode(i ident) uint64 {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return i.ino ^ d.known[i.dev].index<<56
}
