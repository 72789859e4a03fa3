package share

import (
	"errors"
	"strconv"
	"strings"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const sIFDIR = unix.S_IFDIR

// attrs is what statx(2) says of a file.
type attrs struct {
	ident
	mode, nlink, uid, gid uint32
	rdev, blksize         uint32
	size, blocks          uint64
	atime, mtime, ctime   moment
}

func (a *attrs) kind() uint32 { return a.mode & unix.S_IFMT }

const wanted = unix.STATX_BASIC_STATS | unix.STATX_BTIME

// stat asks for name in the directory fd, without following it; for fd itself where name is empty.
func stat(fd int, name string, a *attrs) error {
	var x unix.Statx_t
	for {
		err := unix.Statx(fd, name, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, wanted, &x)
		if err == nil {
			break
		} else if err != unix.EINTR {
			return err
		}
	}
	at := func(t unix.StatxTimestamp) moment { return moment{t.Sec, t.Nsec} }
	*a = attrs{
		ident: ident{dev: unix.Mkdev(x.Dev_major, x.Dev_minor), ino: x.Ino},
		mode:  uint32(x.Mode), nlink: x.Nlink, uid: x.Uid, gid: x.Gid,
		rdev: uint32(x.Rdev_major<<8&0xfff00 | x.Rdev_minor&0xff | x.Rdev_minor&^0xff<<12), blksize: x.Blksize,
		size: x.Size, blocks: x.Blocks, atime: at(x.Atime), mtime: at(x.Mtime), ctime: at(x.Ctime),
	}
	if x.Mask&unix.STATX_BTIME != 0 {
		a.birth = at(x.Btime)
	}
	return nil
}

// status is the answer that says err.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return fuse.Status(errno)
	}
	return fuse.EIO
}

const estale = fuse.Status(unix.ESTALE)

// beneath is how every path is resolved: nothing on the way leads out of the directory that it starts in.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// openBeneath opens path in the directory fd. A symlink as the last element is opened itself where flags have O_PATH, and
// refused otherwise.
func openBeneath(fd int, path string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_NOFOLLOW | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: beneath}
	for range 64 {
		got, err := unix.Openat2(fd, path, &how)
		if err != unix.EINTR && err != unix.EAGAIN { // EAGAIN: something was renamed meanwhile
			return got, err
		}
	}
	return -1, unix.EAGAIN
}

// longest is how much of a path is given to the system at a time: it takes less than 4096 bytes.
const longest = 3840

// openPath opens what path leads to beneath root, as a descriptor that says where and not what (O_PATH).
func openPath(root int, path string) (int, error) {
	from, rest := root, path
	for len(rest) > longest {
		cut := strings.LastIndexByte(rest[:longest], '/')
		next, err := openBeneath(from, rest[:cut], unix.O_PATH|unix.O_DIRECTORY, 0)
		if from != root {
			unix.Close(from)
		}
		if err != nil {
			return -1, err
		}
		from, rest = next, rest[cut+1:]
	}
	fd, err := openBeneath(from, rest, unix.O_PATH, 0)
	if from != root {
		unix.Close(from)
	}
	return fd, err
}

// place is a node that was found: an O_PATH descriptor of it, which the holder closes, and its attributes.
type place struct {
	fd int
	attrs
}

func (p place) close() { unix.Close(p.fd) }

// reopen opens what the descriptor fd is open on, whatever its name is by now. It must not be a symlink or a device.
func reopen(fd, flags int) (int, error) {
	for {
		got, err := unix.Open(self(fd), flags|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != unix.EINTR {
			return got, err
		}
	}
}

// self names what the descriptor fd is open on: a magic link that leads to that very file.
func self(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// find opens the place of n: where one of its links leads, if it is still n that is there. A file without a name is found
// through what the guest has open of it, or, if the host put another in its place, that is found, which is another ident. Else
// the answer is ESTALE, which has the guest look again.
func (s *Server) find(n *node) (place, fuse.Status) {
	if n.share == nil || !n.share.enter() {
		return place{}, estale
	}
	defer n.share.leave()
	for range 2 { // once more, for what was renamed while we looked
		for i := 0; ; i++ {
			path, ok := s.tree.path(n, i)
			if !ok {
				break
			}
			p, err := s.findAt(n, path)
			if err == nil && n == n.share.root && p.nlink == 0 {
				return p, s.deleted(n.share, p)
			}
			if err == nil {
				return p, fuse.OK
			}
			if err != unix.ESTALE && err != unix.ENOENT && err != unix.ENOTDIR && err != unix.ELOOP {
				return place{}, status(err)
			}
		}
	}
	h := s.tree.handleOf(n, false)
	if h == nil {
		return s.successor(n)
	}
	defer h.release()
	fd, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return place{}, status(err)
	}
	p := place{fd: fd}
	if err := stat(fd, "", &p.attrs); err != nil {
		p.close()
		return place{}, status(err)
	}
	return p, fuse.OK
}

// successor opens the file that has the last name of a file now which the host replaced: editors save a file by putting a new
// one in its place, and what the guest bound somewhere by itself, a container's configuration say, is to go on working. Two
// numbers may lead to one file then: nothing of it is to be remembered under the number of n.
func (s *Server) successor(n *node) (place, fuse.Status) {
	if n.kind != unix.S_IFREG {
		return place{}, estale
	}
	s.tree.mu.RLock()
	last := n.lost
	if len(n.links) > 0 {
		last = n.links[0] // not heard of yet
	}
	s.tree.mu.RUnlock()
	if last.dir == nil || last.dir.share != n.share {
		return place{}, estale
	}
	dir, st := s.find(last.dir)
	if st != fuse.OK {
		return place{}, st
	}
	defer dir.close()
	a, st := s.look(last.dir, dir.fd, last.name)
	if st != fuse.OK || a.kind() != n.kind {
		return place{}, estale
	}
	fd, err := openBeneath(dir.fd, last.name, unix.O_PATH, 0)
	if err != nil {
		return place{}, estale
	}
	p := place{fd: fd}
	if err := stat(fd, "", &p.attrs); err != nil || p.ident != a.ident {
		p.close()
		return place{}, estale // replaced again: look again
	}
	return p, fuse.OK
}

func (s *Server) findAt(n *node, path string) (place, error) {
	fd, err := openPath(n.share.fd, path)
	if err != nil {
		return place{}, err
	}
	p := place{fd: fd}
	if err := stat(fd, "", &p.attrs); err != nil {
		p.close()
		return place{}, err
	}
	if p.ident != n.ident || p.kind() != n.kind {
		p.close()
		return place{}, unix.ESTALE
	}
	return p, nil
}

// findDir is find for a directory that something is to be done in. It is watched from now on, if that can be had.
func (s *Server) findDir(id uint64) (*node, place, fuse.Status) {
	n := s.tree.get(id)
	if n == nil {
		return nil, place{}, estale
	}
	if n.kind != sIFDIR {
		return nil, place{}, fuse.ENOTDIR
	}
	p, st := s.find(n)
	if st == fuse.OK {
		s.watch(n, p.fd)
	}
	return n, p, st
}
