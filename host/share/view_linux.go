package share

import (
	"golang.org/x/sys/unix"
)

// The permission bits that a guest's wishes can have on the host.
const (
	fileKeeps, fileHas = 0o755, 0o600
	dirKeeps, dirHas   = 0o755, 0o700
)

// hostMode is the mode on the host of what the guest makes with mode.
func hostMode(kind, mode uint32) uint32 {
	if kind == unix.S_IFDIR {
		return mode&dirKeeps | dirHas
	}
	return mode&fileKeeps | fileHas
}

// hostChmod is the host's mode after the guest changed it to mode: no more than who may execute follows, and among group and
// others only for who may read.
func hostChmod(kind, host, mode uint32) uint32 {
	host &= 0o7777
	follow := uint32(0o100) | host&0o044>>2
	if kind == unix.S_IFDIR {
		follow &^= 0o100 // nobody can take a directory from the host's user
	}
	return host&^follow | mode&follow
}

// view puts what the guest is to see in the place of a's owner and mode.
func (s *Server) view(a *attrs) {
	rec := s.owners.get(a.owner())
	base := a.mode & 0o7777
	if rec.set&ownsUID != 0 {
		a.uid = rec.uid
	}
	if rec.set&ownsGID != 0 {
		a.gid = rec.gid
	}
	switch {
	case rec.set&ownsMode != 0 && uint32(rec.base) == base:
		a.mode = a.mode&unix.S_IFMT | uint32(rec.mode)
	case rec.set == 0:
		a.mode |= s.open(a)
	}
}

// open returns the bits that a directory of the user's which no container has touched is shown with beside its own: where the
// owner may write, whoever may enter may write too, since it is the same user on the host whoever a container runs as.
func (s *Server) open(a *attrs) uint32 {
	if a.kind() != unix.S_IFDIR || a.uid != s.uid || a.mode&0o200 == 0 {
		return 0
	}
	return a.mode & 0o011 << 1
}

// own remembers that the guest wants a, which is as the host has it, to have this owner and mode; no more than what would be
// seen otherwise is written down.
func (s *Server) own(a *attrs, uid, gid, mode uint32) {
	var rec owner
	if uid != a.uid {
		rec.set, rec.uid = rec.set|ownsUID, uid
	}
	if gid != a.gid {
		rec.set, rec.gid = rec.set|ownsGID, gid
	}
	base := a.mode & 0o7777
	plain := base
	if rec.set == 0 {
		plain |= s.open(a)
	}
	if mode &= 0o7777; mode != plain && a.kind() != unix.S_IFLNK {
		rec.set, rec.mode, rec.base = rec.set|ownsMode, uint16(mode), uint16(base)
	}
	s.owners.put(a.owner(), rec)
}

// creator is who owns what a request makes in a directory, and its mode, as the guest would have it: a set-group-ID directory
// hands on its group, and its own bit to directories. A file that is executable by a group which its maker is not in gets no
// set-group-ID bit (CVE-2018-13405).
func (s *Server) creator(dir *attrs, uid, gid, mode uint32) (uint32, uint32, uint32) {
	d := *dir
	s.view(&d)
	if d.mode&unix.S_ISGID == 0 {
		return uid, gid, mode
	}
	switch {
	case mode&unix.S_IFMT == unix.S_IFDIR:
		mode |= unix.S_ISGID
	case mode&(unix.S_ISGID|0o010) == unix.S_ISGID|0o010 && gid != d.gid && uid != 0:
		mode &^= unix.S_ISGID
	}
	return uid, d.gid, mode
}

// unprivileged is mode without the bits that a change of content or owner takes away.
func unprivileged(mode uint32) uint32 {
	if mode&0o010 != 0 {
		mode &^= unix.S_ISGID
	}
	return mode &^ unix.S_ISUID
}
