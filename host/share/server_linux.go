package share

import (
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/coracle-engine/coracle/host/share/notify"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Server answers the requests of one guest. It is a vm.FileSystem; Serve may be called from several goroutines.
type Server struct {
	log      *slog.Logger
	uid      uint32 // the host user
	owners   *owners
	tree     *tree
	handles  handles
	listings listings
	watches  watches
	devices  devices
	changes  changes
	replays  replays
	exports  exports

	gate     sync.RWMutex                        // held shared by requests and comparisons, alone by a reset
	protocol atomic.Pointer[fuse.ProtocolServer] // nil until the guest's INIT
	answers  atomic.Uint32                       // about directories that just changed
	done     sync.WaitGroup
}

// exports are the shares as they are now.
type exports struct {
	mu     sync.RWMutex
	byTag  map[string]*share
	never  []string       // paths of what is hidden at any depth
	hidden map[ident]bool // the same, by identity
}

// share is a Share that is served.
type share struct {
	Share
	fd      int // O_PATH, of its root
	root    *node
	secrets secrets

	above notify.ID // of the watch of the directory that the root lies in, and
	name  string    // the root's name there; guarded by the server's watches.mu

	gone  atomic.Bool
	users atomic.Int64 // of fd; negative when it is closed
}

// enter keeps fd open until leave; false when the share is gone.
func (s *share) enter() bool {
	if s.users.Add(1) > 0 && !s.gone.Load() {
		return true
	}
	s.leave()
	return false
}

// closed is what users falls by when the share is gone: the last user out closes fd.
const closed = 1 << 40

func (s *share) leave() {
	if s.users.Add(-1) == -closed && s.users.CompareAndSwap(-closed, -2*closed) {
		unix.Close(s.fd)
	}
}

func (s *share) close() {
	s.users.Add(1)
	s.gone.Store(true)
	s.users.Add(-closed)
	s.leave()
}

// New makes a Server without shares. The caller closes it.
func New(cfg Config) (*Server, error) {
	if cfg.Streams <= 0 {
		cfg.Streams = 2
	}
	records, err := openOwners(cfg.Dir, cfg.Log)
	if err != nil {
		return nil, err
	}
	s := &Server{
		log: cfg.Log, uid: uint32(os.Geteuid()), owners: records,
		tree:    newTree(),
		watches: watches{watcher: cfg.Watcher, byID: map[notify.ID][]*node{}, above: map[notify.ID][]*share{}},
		devices: devices{known: map[uint64]device{}},
		exports: exports{byTag: map[string]*share{}, never: cfg.Hidden},
	}
	s.handles.limit = handleLimit()
	s.handles.left.start()
	s.changes.init(s.tree)
	s.replays.streams = cfg.Streams
	root := &node{id: fuse.FUSE_ROOT_ID, kind: sIFDIR, dir: &directory{}}
	s.tree.byID[root.id] = root
	if cfg.Watcher != nil {
		s.done.Add(1)
		go func() {
			defer s.done.Done()
			s.listen(cfg.Watcher.Events())
		}()
	}
	return s, nil
}

// Close ends the Server: all that the guest holds is void. No Serve runs meanwhile, and Replay has returned. It may be called
// again.
func (s *Server) Close() error {
	err := s.SetShares(nil)
	s.clear()
	s.changes.once.Do(func() { close(s.changes.quit) })
	s.done.Wait()
	s.handles.left.stop()
	return errors.Join(err, s.owners.close())
}

// SetShares makes shares the whole set, also while the guest uses them. What the guest holds of a share that is not among
// them any more, or whose path changed, is void. The error names the shares that cannot be served; the others are.
func (s *Server) SetShares(shares []Share) error {
	s.adoptAll()
	s.exports.mu.Lock()
	defer s.exports.mu.Unlock()
	s.exports.hidden = identities(s.exports.never)
	next := map[string]*share{}
	var errs []error
	for _, want := range shares {
		if !validTag(want.Tag) || next[want.Tag] != nil {
			errs = append(errs, fmt.Errorf("share %s: bad or repeated tag %q", want.Path, want.Tag))
			continue
		}
		if old := s.exports.byTag[want.Tag]; old != nil && old.Share == want {
			next[want.Tag] = old
			continue
		}
		got, err := s.export(want)
		if err != nil {
			errs = append(errs, fmt.Errorf("share %s: %w", want.Path, err))
			continue
		}
		s.tree.register(got.root)
		s.watchAbove(got)
		next[want.Tag] = got
	}
	for tag, old := range s.exports.byTag {
		if next[tag] != old {
			s.withdraw(old, nil)
		}
	}
	s.exports.byTag = next
	return errors.Join(errs...)
}

func validTag(tag string) bool {
	if tag == "" || len(tag) > 64 {
		return false
	}
	for _, c := range []byte(tag) {
		if c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// identities returns what the paths lead to, of those that lead anywhere.
func identities(paths []string) map[ident]bool {
	ids := map[ident]bool{}
	for _, p := range paths {
		if fd, err := unix.Open(p, unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
			var a attrs
			if stat(fd, "", &a) == nil {
				ids[a.ident] = true
			}
			unix.Close(fd)
		}
	}
	return ids
}

// export opens a share, whose root is not in the tree yet. The path may lead through symlinks: the user named it.
func (s *Server) export(want Share) (*share, error) {
	if !filepath.IsAbs(want.Path) {
		return nil, errors.New("the path is not absolute")
	}
	fd, err := unix.Open(want.Path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: want.Path, Err: err}
	}
	sh := &share{Share: want, fd: fd}
	var a attrs
	if err = stat(fd, "", &a); err == nil {
		err = s.exportable(fd, a)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	if !want.Secrets {
		home, _ := os.UserHomeDir()
		if real, err := filepath.EvalSymlinks(home); err == nil {
			home = real
		}
		real, err := filepath.EvalSymlinks(want.Path)
		if err != nil {
			real = want.Path
		}
		sh.secrets = hide(real, home)
	}
	sh.root = &node{share: sh, ident: a.ident, kind: sIFDIR, dir: &directory{}}
	return sh, nil
}

// exportable refuses a directory that is in or beneath a hidden one, or on a file system without files.
func (s *Server) exportable(fd int, a attrs) error {
	if s.devices.of(a.dev, fd).unfile {
		return errors.New("it is a file system of the kernel's, not of files")
	}
	for range maxDepth {
		if s.exports.hidden[a.ident] {
			return errors.New("it holds what is Coracle's own")
		}
		up, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil // the user may not look there, and neither may the guest
		}
		last := a.ident
		err = stat(up, "", &a)
		defer unix.Close(up)
		if err != nil || a.ident == last {
			return err
		}
		fd = up
	}
	return errors.New("it is too deep")
}

// clear forgets all that the guest was told and has open. Shares stay.
func (s *Server) clear() {
	s.handles.closeAll()
	s.listings.drop(func(*node) bool { return true })
	s.tree.mu.Lock()
	var dirs []*node
	for id, n := range s.tree.byID {
		if n.dir != nil && n.share != nil {
			dirs = append(dirs, n)
		}
		n.links, n.names, n.lookups, n.children, n.handles, n.lost = nil, nil, 0, 0, nil, link{}
		if n.share != nil && n != n.share.root {
			delete(s.tree.byID, id)
			delete(s.tree.byKey, key{n.share, n.ident})
		}
	}
	s.tree.unheld = nil
	s.tree.mu.Unlock()
	s.unwatch(dirs)
	s.changes.clear()
}

// Reset forgets all that a driver in the guest was told and had open. It waits for requests that are being answered.
func (s *Server) Reset() {
	s.gate.Lock()
	defer s.gate.Unlock()
	s.reset()
}

// reset is Reset. Call with gate held alone.
func (s *Server) reset() {
	s.protocol.Store(nil)
	s.clear()
}

// maxWrite is how much one request reads or writes, in bytes.
const maxWrite = 1 << 20

// options are what is agreed on with the guest's kernel: no write-back cache, no locks of files (the guest's kernel keeps them,
// which is right between its containers), and no permission checks of ours but the kernel's own.
func (s *Server) options() *fuse.MountOptions {
	return &fuse.MountOptions{
		MaxWrite: maxWrite, MaxBackground: 64, Name: "coracle", FsName: "coracle", Logger: log.New(io.Discard, "", 0),
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_NO_OPENDIR_SUPPORT |
			fuse.CAP_CACHE_SYMLINKS | fuse.CAP_ASYNC_DIO,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_NO_OPEN_SUPPORT,
		PanicHandler: func(why any) fuse.Status {
			s.log.Error("answering a request of the guest's went wrong", "panic", why, "stack", string(debug.Stack()))
			return fuse.EIO
		},
	}
}
