package share

import (
	"math"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// GetAttr answers GETATTR.
func (s *fileSystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	if in.NodeId == fuse.FUSE_ROOT_ID {
		out.Attr = rootAttr()
		out.SetTimeout(long)
		return fuse.OK
	}
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 {
		if h := s.handles.get(in.Fh(), in.NodeId); h != nil {
			defer h.release()
			var a attrs
			if err := stat(h.fd, "", &a); err != nil {
				return status(err)
			}
			s.attributes(out, h.node, a, 0)
			return fuse.OK
		}
	}
	n := s.tree.get(in.NodeId)
	if n == nil {
		return estale
	}
	var grace int32
	if e, mine := s.replays.of(in.Pid); mine && e != nil && e.node == n {
		grace = 1
	}
	p, st := s.find(n)
	if st != fuse.OK {
		return st
	}
	defer p.close()
	if n.kind == unix.S_IFDIR && !n.dir.watched.Load() {
		s.watch(n, p.fd)
		if err := stat(p.fd, "", &p.attrs); err != nil {
			return status(err)
		}
	}
	s.attributes(out, n, p.attrs, grace)
	return fuse.OK
}

// rootAttr is the device's root.
func rootAttr() fuse.Attr {
	return fuse.Attr{Ino: fuse.FUSE_ROOT_ID, Mode: unix.S_IFDIR | 0o755, Nlink: 2, Blksize: 4096}
}

// SetAttr answers SETATTR.
func (s *fileSystem) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if e, mine := s.replays.of(in.Pid); mine {
		return s.setAttrReplayed(e, in, out)
	}
	n := s.tree.get(in.NodeId)
	if n == nil || n.share == nil {
		return estale
	}
	if n.share.ReadOnly {
		return fuse.EROFS
	}
	p, st := s.find(n)
	if st != fuse.OK {
		return st
	}
	defer p.close()
	n.content.RLock()
	defer n.content.RUnlock()
	if size, ok := in.GetSize(); ok {
		if st := s.truncate(n, p, in, size); st != fuse.OK {
			return st
		}
	}
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID|fuse.FATTR_KILL_SUIDGID) != 0 {
		if err := s.chown(p, in); err != nil {
			return status(err)
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) != 0 {
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, self(p.fd), times(in), 0); err != nil {
			return status(err)
		}
	}
	if err := stat(p.fd, "", &p.attrs); err != nil {
		return status(err)
	}
	shown := p.attrs
	s.view(&shown)
	n.made(&shown)
	s.attributes(out, n, p.attrs, 0)
	return fuse.OK
}

func (s *Server) truncate(n *node, p place, in *fuse.SetAttrIn, size uint64) fuse.Status {
	if n.kind != unix.S_IFREG {
		return fuse.EINVAL
	}
	if size > math.MaxInt64 {
		return fuse.Status(unix.EFBIG)
	}
	if fh, ok := in.GetFh(); ok {
		if h := s.handles.get(fh, in.NodeId); h != nil {
			defer h.release()
			if h.write {
				return status(unix.Ftruncate(h.fd, int64(size)))
			}
		}
	}
	fd, err := reopen(p.fd, unix.O_WRONLY)
	if err != nil {
		return status(err)
	}
	defer unix.Close(fd)
	return status(unix.Ftruncate(fd, int64(size)))
}

// chown puts down the owner and mode that the guest wants, and has the host's execute bits follow.
func (s *Server) chown(p place, in *fuse.SetAttrIn) error {
	a := p.attrs
	if err := stat(p.fd, "", &a); err != nil {
		return err
	}
	shown := a
	s.view(&shown)
	uid, gid, mode := shown.uid, shown.gid, shown.mode
	if v, ok := in.GetUID(); ok {
		uid = v
	}
	if v, ok := in.GetGID(); ok {
		gid = v
	}
	file := a.kind() == unix.S_IFREG
	if v, ok := in.GetMode(); ok {
		mode = mode&unix.S_IFMT | v
		// Nothing but a file or a directory has bits of its own on the host that matter.
		if want := hostChmod(a.kind(), a.mode, v); want != a.mode&0o7777 && (file || a.kind() == unix.S_IFDIR) && a.uid == s.uid {
			if err := unix.Chmod(self(p.fd), want); err != nil {
				return err
			}
			a.mode = a.mode&unix.S_IFMT | want
		}
	} else if file && in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID|fuse.FATTR_KILL_SUIDGID) != 0 {
		mode = unprivileged(mode)
	}
	s.own(&a, uid, gid, mode)
	return nil
}

// times are the access and modification times that in asks for.
func times(in *fuse.SetAttrIn) []unix.Timespec {
	at := func(valid, now uint32, sec uint64, nsec uint32) unix.Timespec {
		switch {
		case in.Valid&valid == 0:
			return unix.Timespec{Nsec: unix.UTIME_OMIT}
		case in.Valid&now != 0:
			return unix.Timespec{Nsec: unix.UTIME_NOW}
		}
		return unix.Timespec{Sec: int64(sec), Nsec: int64(min(nsec, 999_999_999))}
	}
	return []unix.Timespec{
		at(fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		at(fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}
}

// Readlink answers READLINK.
func (s *fileSystem) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n := s.tree.get(in.NodeId)
	if n == nil {
		return nil, estale
	}
	if n.kind != unix.S_IFLNK {
		return nil, fuse.EINVAL
	}
	p, st := s.find(n)
	if st != fuse.OK {
		return nil, st
	}
	defer p.close()
	buf := make([]byte, 4096)
	size, err := unix.Readlinkat(p.fd, "", buf)
	if err != nil {
		return nil, status(err)
	}
	return buf[:size], fuse.OK
}

// StatFs answers STATFS with the file system of a share; the device's root has none.
func (s *fileSystem) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	out.NameLen, out.Bsize, out.Frsize = 255, 4096, 4096
	n := s.tree.get(in.NodeId)
	if n == nil || n.share == nil {
		return fuse.OK
	}
	p, st := s.find(n)
	if st != fuse.OK {
		return st
	}
	defer p.close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(p.fd, &fs); err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Blocks: fs.Blocks, Bfree: fs.Bfree, Bavail: fs.Bavail, Files: fs.Files, Ffree: fs.Ffree,
		Bsize: uint32(fs.Bsize), NameLen: uint32(fs.Namelen), Frsize: uint32(fs.Frsize),
	}
	return fuse.OK
}

// ownXAttr is what names of extended attributes begin with that go to the host. All others mean something to the host itself,
// capabilities of files among them.
const ownXAttr = "user."

// attribute finds the node of a request about the extended attribute name, to be changed or not.
func (s *Server) attribute(id uint64, name string, change bool) (*node, place, fuse.Status) {
	if !strings.HasPrefix(name, ownXAttr) || id == fuse.FUSE_ROOT_ID {
		return nil, place{}, fuse.ENOTSUP
	}
	n := s.tree.get(id)
	if n == nil {
		return nil, place{}, estale
	}
	if n.kind != unix.S_IFREG && n.kind != unix.S_IFDIR {
		return nil, place{}, fuse.EPERM
	}
	if change && n.share.ReadOnly {
		return nil, place{}, fuse.EROFS
	}
	p, st := s.find(n)
	return n, p, st
}

// GetXAttr answers GETXATTR.
func (s *fileSystem) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	_, p, st := s.attribute(in.NodeId, name, false)
	if st != fuse.OK {
		return 0, st
	}
	defer p.close()
	size, err := unix.Getxattr(self(p.fd), name, dest)
	return uint32(max(size, 0)), status(err)
}

// ListXAttr answers LISTXATTR.
func (s *fileSystem) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	_, p, st := s.attribute(in.NodeId, ownXAttr, false)
	if st == fuse.EPERM || st == fuse.ENOTSUP {
		return 0, fuse.OK
	} else if st != fuse.OK {
		return 0, st
	}
	defer p.close()
	buf := make([]byte, 64<<10)
	size, err := unix.Listxattr(self(p.fd), buf)
	if err != nil {
		return 0, status(err)
	}
	var names []byte
	for name := range strings.SplitAfterSeq(string(buf[:size]), "\x00") {
		if strings.HasPrefix(name, ownXAttr) {
			names = append(names, name...)
		}
	}
	if len(dest) > 0 && len(dest) < len(names) {
		return 0, fuse.ERANGE
	}
	copy(dest, names)
	return uint32(len(names)), fuse.OK
}

// SetXAttr answers SETXATTR.
func (s *fileSystem) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	if in.Size < uint32(len(data)) {
		data = data[:in.Size]
	}
	return s.changeXAttr(&in.InHeader, name, func(path string) error { return unix.Setxattr(path, name, data, int(in.Flags)) })
}

// RemoveXAttr answers REMOVEXATTR.
func (s *fileSystem) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return s.changeXAttr(in, name, func(path string) error { return unix.Removexattr(path, name) })
}

func (s *Server) changeXAttr(in *fuse.InHeader, name string, do func(path string) error) fuse.Status {
	if _, mine := s.replays.of(in.Pid); mine {
		return fuse.EIO
	}
	n, p, st := s.attribute(in.NodeId, name, true)
	if st != fuse.OK {
		return st
	}
	defer p.close()
	n.content.RLock()
	defer n.content.RUnlock()
	if err := do(self(p.fd)); err != nil {
		return status(err)
	}
	var a attrs
	if err := stat(p.fd, "", &a); err != nil {
		return status(err)
	}
	s.view(&a)
	n.made(&a)
	return fuse.OK
}
