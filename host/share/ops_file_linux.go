package share

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// openFlags are those of the guest's flags that the host's file is opened with. The guest's kernel gives every write its
// place, so that a descriptor is never one that appends: pages of a map are written through any of them.
const openFlags = unix.O_ACCMODE | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC

func writes(flags uint32) bool { return flags&unix.O_ACCMODE != unix.O_RDONLY }

// Open answers OPEN: of files alone. Pipes, sockets and devices are opened by the guest's kernel, and never here.
func (s *fileSystem) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if _, mine := s.replays.of(in.Pid); mine {
		return fuse.EIO
	}
	n := s.tree.get(in.NodeId)
	if n == nil {
		return estale
	}
	h, keep, st := s.openNode(n, in.Flags, in.Mode&fuse.OPEN_KILL_SUIDGID != 0)
	if st != fuse.OK {
		return st
	}
	out.Fh = h.id
	if keep {
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}

// openNode opens a file. keep says that the guest's pages of it, if it has any, are those of the host.
func (s *Server) openNode(n *node, flags uint32, kill bool) (h *handle, keep bool, st fuse.Status) {
	if n.kind != unix.S_IFREG {
		return nil, false, fuse.EINVAL
	}
	if n.share.ReadOnly && (writes(flags) || flags&unix.O_TRUNC != 0) {
		return nil, false, fuse.EROFS
	}
	p, st := s.find(n)
	if st != fuse.OK {
		return nil, false, st
	}
	defer p.close()
	if !s.handles.reserve() {
		return nil, false, fuse.Status(unix.ENFILE)
	}
	n.content.RLock()
	defer n.content.RUnlock()
	fd, err := reopen(p.fd, int(flags&openFlags))
	if err != nil {
		s.handles.count.Add(-1)
		return nil, false, status(err)
	}
	if flags&unix.O_TRUNC != 0 {
		s.wrote(n, fd, kill)
	} else {
		s.view(&p.attrs)
		n.mu.Lock()
		keep = p.ident == n.ident && n.shown.sameContent(stampOf(&p.attrs))
		n.mu.Unlock()
		if dir := s.tree.dirOf(n); keep && p.fresh() && (dir == nil || !dir.dir.watched.Load() || p.nlink > 1) {
			keep = false // it can change again without a new time, and nobody would hear
		}
	}
	h = s.handles.add(n, fd, writes(flags))
	s.change(func(t *tree) { t.opened(h) })
	return h, keep, fuse.OK
}

// wrote notes what the guest made of the content of n, which fd is open on. kill has it lose its set-user-ID bits. Call with
// n.content held shared.
func (s *Server) wrote(n *node, fd int, kill bool) {
	var a attrs
	if stat(fd, "", &a) != nil {
		return // the next answer about n says why
	}
	shown := a
	s.view(&shown)
	if kill && unprivileged(shown.mode) != shown.mode {
		s.own(&a, shown.uid, shown.gid, unprivileged(shown.mode))
		shown.mode = unprivileged(shown.mode)
	}
	n.made(&shown)
}

// Create answers CREATE: a file that is made and opened, or opened where it is there already.
func (s *fileSystem) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if e, mine := s.replays.of(in.Pid); mine {
		return s.makeReplayed(e, &in.InHeader, name, &out.EntryOut)
	}
	d, st := s.lock(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	h, there, st := s.createIn(d, in, name, out)
	d.unlock()
	if !there || in.Flags&unix.O_EXCL != 0 {
		if there {
			return fuse.Status(unix.EEXIST)
		}
		return s.opened(h, out, st)
	}
	// Somebody else made it first.
	if st := s.Lookup(nil, &in.InHeader, name, &out.EntryOut); st != fuse.OK || out.NodeId == 0 {
		return estale
	}
	n := s.tree.get(out.NodeId)
	if n == nil {
		return estale
	}
	h, _, st = s.openNode(n, in.Flags, false)
	if st != fuse.OK {
		s.forget(n, 1)
	}
	return s.opened(h, out, st)
}

func (s *Server) opened(h *handle, out *fuse.CreateOut, st fuse.Status) fuse.Status {
	if st == fuse.OK {
		out.Fh = h.id
	}
	return st
}

// createIn makes and opens name in d. there says that it exists.
func (s *Server) createIn(d locked, in *fuse.CreateIn, name string, out *fuse.CreateOut) (h *handle, there bool, st fuse.Status) {
	if !s.handles.reserve() {
		return nil, false, fuse.Status(unix.ENFILE)
	}
	flags := int(in.Flags&openFlags) | unix.O_CREAT | unix.O_EXCL
	fd, err := openBeneath(d.at.fd, name, flags, hostMode(unix.S_IFREG, in.Mode))
	if err != nil {
		s.handles.count.Add(-1)
		return nil, err == unix.EEXIST, status(err)
	}
	n, st := s.made(d, name, fd, &in.InHeader, in.Mode&0o7777|unix.S_IFREG, &out.EntryOut)
	if st != fuse.OK {
		s.handles.count.Add(-1)
		unix.Close(fd)
		return nil, false, st
	}
	h = s.handles.add(n, fd, writes(in.Flags))
	s.change(func(t *tree) { t.opened(h) })
	return h, false, fuse.OK
}

// Tmpfile answers TMPFILE: a file without a name, which LINK may give it.
func (s *fileSystem) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if _, mine := s.replays.of(in.Pid); mine {
		return fuse.EIO
	}
	dir, at, st := s.findDir(in.NodeId)
	if st != fuse.OK {
		return st
	}
	defer at.close()
	if dir.share.ReadOnly {
		return fuse.EROFS
	}
	if !s.handles.reserve() {
		return fuse.Status(unix.ENFILE)
	}
	flags := int(in.Flags&(openFlags&^unix.O_TRUNC|unix.O_EXCL)) | unix.O_TMPFILE
	fd, err := openBeneath(at.fd, ".", flags, hostMode(unix.S_IFREG, in.Mode))
	if err != nil {
		s.handles.count.Add(-1)
		return status(err)
	}
	var a attrs
	if err := stat(fd, "", &a); err != nil {
		s.handles.count.Add(-1)
		unix.Close(fd)
		return status(err)
	}
	uid, gid, mode := s.creator(&at.attrs, in.Uid, in.Gid, in.Mode&0o7777|unix.S_IFREG)
	s.own(&a, uid, gid, mode)
	s.view(&a)
	var h *handle
	s.change(func(t *tree) {
		n := t.intern(dir.share, a.ident, a.kind())
		t.hold(n, func() { n.lookups++ })
		h = s.handles.add(n, fd, writes(in.Flags))
		t.opened(h)
	})
	h.node.made(&a)
	out.NodeId, out.Fh = h.node.id, h.id
	s.fill(&out.Attr, &a)
	return fuse.OK
}

// Release answers RELEASE.
func (s *fileSystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	h := s.handles.get(in.Fh, in.NodeId)
	if h == nil {
		return
	}
	defer h.release()
	if s.handles.close(in.Fh) == nil {
		return
	}
	last := false
	s.change(func(t *tree) {
		t.closed(h)
		last = len(h.node.links) == 0 && len(h.node.handles) == 0
	})
	var a attrs
	if last && stat(h.fd, "", &a) == nil && a.nlink == 0 {
		s.owners.put(a.owner(), owner{})
	}
}

// reading is a read that is made when its place in the answer is known.
type reading struct {
	h    *handle
	off  int64
	size int
}

func (r *reading) Size() int { return r.size }
func (r *reading) Done()     { r.h.release() }

// Readv reads to where the guest has room.
func (r *reading) Readv(dst [][]byte) (int, fuse.Status) {
	n, err := vectored(dst, r.off, func(part [][]byte, off int64) (int, error) { return unix.Preadv(r.h.fd, part, off) })
	return n, status(err)
}

// Bytes reads to buf.
func (r *reading) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, st := r.Readv([][]byte{buf[:min(len(buf), r.size)]})
	return buf[:n], st
}

// maxVector is how many pieces the system takes at a time.
const maxVector = 1024

// vectored moves the bytes of pieces by do until they are done, or do makes no more.
func vectored(pieces [][]byte, off int64, do func([][]byte, int64) (int, error)) (int, error) {
	total := 0
	for len(pieces) > 0 {
		part := pieces[:min(len(pieces), maxVector)]
		want := 0
		for _, p := range part {
			want += len(p)
		}
		n, err := do(part, off+int64(total))
		if err == unix.EINTR {
			continue
		}
		if err != nil && total == 0 {
			return 0, err
		}
		total += max(n, 0)
		if err != nil || n < want {
			break
		}
		pieces = pieces[len(part):]
	}
	return total, nil
}

// Read answers READ.
func (s *fileSystem) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	h := s.handles.get(in.Fh, in.NodeId)
	if h == nil || in.Offset > math.MaxInt64-maxWrite {
		return nil, fuse.EBADF
	}
	return &reading{h, int64(in.Offset), int(in.Size)}, fuse.OK
}

// Write answers WRITE of one piece.
func (s *fileSystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return s.Writev(cancel, in, [][]byte{data})
}

// Writev answers WRITE. What is written to a file that is open for appending goes to where the host has its end, unless it
// comes from the guest's pages.
func (s *fileSystem) Writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	h := s.handles.get(in.Fh, in.NodeId)
	if h == nil {
		return 0, fuse.EBADF
	}
	defer h.release()
	if in.Offset > math.MaxInt64-maxWrite {
		return 0, fuse.Status(unix.EFBIG)
	}
	if _, mine := s.replays.of(in.Pid); mine && in.WriteFlags&fuse.WRITE_CACHE == 0 {
		return 0, fuse.EIO
	}
	how := 0
	if in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0 {
		how = unix.RWF_APPEND
	}
	h.node.content.RLock()
	defer h.node.content.RUnlock()
	n, err := vectored(data, int64(in.Offset), func(part [][]byte, off int64) (int, error) {
		if how != 0 {
			return unix.Pwritev2(h.fd, part, off, how)
		}
		return unix.Pwritev(h.fd, part, off)
	})
	if n > 0 {
		s.wrote(h.node, h.fd, in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0)
	}
	return uint32(n), status(err)
}

// Flush answers FLUSH, once: nothing is held back that it could write, and no lock is ours.
func (s *fileSystem) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }

// Fsync answers FSYNC.
func (s *fileSystem) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := s.handles.get(in.Fh, in.NodeId)
	if h == nil {
		return fuse.EBADF
	}
	defer h.release()
	if in.FsyncFlags&1 != 0 {
		return status(unix.Fdatasync(h.fd))
	}
	return status(unix.Fsync(h.fd))
}

// Fallocate answers FALLOCATE.
func (s *fileSystem) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := s.handles.get(in.Fh, in.NodeId)
	if h == nil {
		return fuse.EBADF
	}
	defer h.release()
	if _, mine := s.replays.of(in.Pid); mine {
		return fuse.EIO
	}
	if in.Offset > math.MaxInt64 || in.Length > math.MaxInt64 {
		return fuse.Status(unix.EFBIG)
	}
	h.node.content.RLock()
	defer h.node.content.RUnlock()
	err := unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length))
	if err == nil {
		s.wrote(h.node, h.fd, true)
	}
	return status(err)
}

// Lseek answers LSEEK, which asks for data and holes alone.
func (s *fileSystem) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := s.handles.get(in.Fh, in.NodeId)
	if h == nil {
		return fuse.EBADF
	}
	defer h.release()
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE || in.Offset > math.MaxInt64 {
		return fuse.EINVAL
	}
	off, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(max(off, 0))
	return status(err)
}

// CopyFileRange answers COPY_FILE_RANGE: the bytes never come to the guest.
func (s *fileSystem) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from := s.handles.get(in.FhIn, in.NodeId)
	if from == nil {
		return 0, fuse.EBADF
	}
	defer from.release()
	to := s.handles.get(in.FhOut, in.NodeIdOut)
	if to == nil {
		return 0, fuse.EBADF
	}
	defer to.release()
	if _, mine := s.replays.of(in.Pid); mine {
		return 0, fuse.EIO
	}
	if in.Flags != 0 || in.OffIn > math.MaxInt64 || in.OffOut > math.MaxInt64 {
		return 0, fuse.EINVAL
	}
	to.node.content.RLock()
	defer to.node.content.RUnlock()
	offIn, offOut := int64(in.OffIn), int64(in.OffOut)
	n, err := unix.CopyFileRange(from.fd, &offIn, to.fd, &offOut, int(min(in.Len, 1<<30)), 0)
	if n > 0 {
		s.wrote(to.node, to.fd, true)
	}
	return uint32(max(n, 0)), status(err)
}
