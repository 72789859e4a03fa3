package share

import (
	"encoding/binary"
	"testing"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// client is a guest that speaks FUSE to Serve without a kernel in between: it can say anything.
type client struct {
	s        interface{ Serve(in, out [][]byte) int }
	uid, gid uint32
	pid      uint32
}

func (f fixture) client(t testing.TB) *client {
	t.Helper()
	c := &client{s: f.Server, uid: 1000, gid: 1000}
	init := fuse.InitIn{Major: 7, Minor: 38, Flags: ^uint32(0)}
	if st, _ := c.call(opInit, 0, raw(&init), ""); st != fuse.OK {
		t.Fatal("INIT:", st)
	}
	return c
}

// raw returns the bytes of a request behind its header.
func raw[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))[headerSize:]
}

func as[T any](b []byte) *T {
	v := new(T)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v)), b)
	return v
}

// call makes one request, scattered over pieces of memory, and returns its answer.
func (c *client) call(op uint32, node uint64, body []byte, payload string) (fuse.Status, []byte) {
	return c.callRoom(op, node, body, payload, 4096)
}

func (c *client) callRoom(op uint32, node uint64, body []byte, payload string, room int) (fuse.Status, []byte) {
	h := fuse.InHeader{Length: uint32(int(headerSize) + len(body) + len(payload)), Opcode: op, Unique: 7, NodeId: node}
	h.Uid, h.Gid, h.Pid = c.uid, c.gid, c.pid
	head := unsafe.Slice((*byte)(unsafe.Pointer(&h)), headerSize)
	out := make([]byte, room)
	n := c.s.Serve([][]byte{append([]byte(nil), head...), body, []byte(payload)}, [][]byte{out[:16], out[16:]})
	if n < 16 {
		return -1, nil
	}
	return fuse.Status(-int32(binary.NativeEndian.Uint32(out[4:]))), out[16:n]
}

func (c *client) lookup(dir uint64, name string) (fuse.Status, *fuse.EntryOut) {
	st, b := c.call(1, dir, nil, name+"\x00")
	out := as[fuse.EntryOut](b)
	if st == fuse.OK && out.NodeId == 0 {
		st = fuse.ENOENT
	}
	return st, out
}

func (c *client) create(dir uint64, name string, flags, mode uint32) (fuse.Status, *fuse.CreateOut) {
	st, b := c.call(35, dir, raw(&fuse.CreateIn{Flags: flags | unix.O_CREAT, Mode: mode | unix.S_IFREG}), name+"\x00")
	return st, as[fuse.CreateOut](b)
}

func (c *client) mkdir(dir uint64, name string, mode uint32) (fuse.Status, *fuse.EntryOut) {
	st, b := c.call(9, dir, raw(&fuse.MkdirIn{Mode: mode}), name+"\x00")
	return st, as[fuse.EntryOut](b)
}

func (c *client) mknod(dir uint64, name string, mode, rdev uint32) fuse.Status {
	st, _ := c.call(8, dir, raw(&fuse.MknodIn{Mode: mode, Rdev: rdev}), name+"\x00")
	return st
}

func (c *client) symlink(dir uint64, target, name string) (fuse.Status, *fuse.EntryOut) {
	st, b := c.call(6, dir, nil, name+"\x00"+target+"\x00")
	return st, as[fuse.EntryOut](b)
}

func (c *client) open(node uint64, flags uint32) (fuse.Status, *fuse.OpenOut) {
	st, b := c.call(14, node, raw(&fuse.OpenIn{Flags: flags}), "")
	return st, as[fuse.OpenOut](b)
}

func (c *client) release(node, fh uint64) { c.call(18, node, raw(&fuse.ReleaseIn{Fh: fh}), "") }

func (c *client) read(node, fh uint64, size uint32) (fuse.Status, string) {
	st, b := c.callRoom(15, node, raw(&fuse.ReadIn{Fh: fh, Size: size}), "", int(size)+16)
	return st, string(b)
}

func (c *client) write(node, fh uint64, data string) fuse.Status {
	st, _ := c.call(16, node, raw(&fuse.WriteIn{Fh: fh, Size: uint32(len(data)), WriteFlags: fuse.WRITE_KILL_SUIDGID}), data)
	return st
}

func (c *client) getattr(node uint64) (fuse.Status, *fuse.AttrOut) {
	st, b := c.call(3, node, raw(&fuse.GetAttrIn{}), "")
	return st, as[fuse.AttrOut](b)
}

func (c *client) setattr(node uint64, in fuse.SetAttrIn) (fuse.Status, *fuse.AttrOut) {
	st, b := c.call(4, node, raw(&in), "")
	return st, as[fuse.AttrOut](b)
}

func (c *client) chmod(node uint64, mode uint32) (fuse.Status, *fuse.AttrOut) {
	in := fuse.SetAttrIn{}
	in.Valid, in.Mode = fuse.FATTR_MODE, mode
	return c.setattr(node, in)
}

func (c *client) chown(node uint64, uid, gid uint32) (fuse.Status, *fuse.AttrOut) {
	in := fuse.SetAttrIn{}
	in.Valid, in.Uid, in.Gid = fuse.FATTR_UID|fuse.FATTR_GID, uid, gid
	return c.setattr(node, in)
}

func (c *client) unlink(dir uint64, name string) fuse.Status {
	st, _ := c.call(10, dir, nil, name+"\x00")
	return st
}

func (c *client) rmdir(dir uint64, name string) fuse.Status {
	st, _ := c.call(11, dir, nil, name+"\x00")
	return st
}

func (c *client) rename(from uint64, name string, to uint64, toName string, flags uint32) fuse.Status {
	st, _ := c.call(45, from, raw(&fuse.RenameIn{Newdir: to, Flags: flags}), name+"\x00"+toName+"\x00")
	return st
}

func (c *client) link(node, dir uint64, name string) fuse.Status {
	st, _ := c.call(13, dir, raw(&fuse.LinkIn{Oldnodeid: node}), name+"\x00")
	return st
}

func (c *client) tmpfile(dir uint64) (fuse.Status, *fuse.CreateOut) {
	st, b := c.call(51, dir, raw(&fuse.CreateIn{Flags: unix.O_RDWR | unix.O_TMPFILE, Mode: 0o600 | unix.S_IFREG}), "/\x00")
	return st, as[fuse.CreateOut](b)
}

func (c *client) forget(node, count uint64) { c.call(2, node, raw(&fuse.ForgetIn{Nlookup: count}), "") }

func (c *client) setxattr(node uint64, name, value string) fuse.Status {
	body := binary.NativeEndian.AppendUint32(nil, uint32(len(value)))
	st, _ := c.call(21, node, binary.NativeEndian.AppendUint32(body, 0), name+"\x00"+value)
	return st
}

func (c *client) getxattr(node uint64, name string) (fuse.Status, string) {
	st, b := c.call(22, node, raw(&fuse.GetXAttrIn{Size: 64}), name+"\x00")
	return st, string(b)
}

// list returns the names in a directory by READDIR or READDIRPLUS, in answers of size bytes.
func (c *client) list(node uint64, plus bool, size uint32) (fuse.Status, []string) {
	var names []string
	for off := uint64(0); ; {
		op := uint32(28)
		if plus {
			op = 44
		}
		st, b := c.callRoom(op, node, raw(&fuse.ReadIn{Offset: off, Size: size}), "", int(size)+16)
		if st != fuse.OK {
			return st, names
		}
		parse := fuse.ParseDirEntries
		if plus {
			parse = func(b []byte) ([]fuse.DirEntry, error) {
				list, _, err := fuse.ParseDirLookupEntries(b)
				return list, err
			}
		}
		entries, err := parse(b)
		if err != nil || len(entries) == 0 {
			return status(err), names
		}
		for _, e := range entries {
			if e.Name != "." && e.Name != ".." {
				names = append(names, e.Name)
			}
			off = e.Off
		}
	}
}

// root returns the node of the share with a tag.
func (c *client) root(t testing.TB, tag string) uint64 {
	t.Helper()
	st, out := c.lookup(fuse.FUSE_ROOT_ID, tag)
	if st != fuse.OK {
		t.Fatalf("look up the share %q: %v", tag, st)
	}
	return out.NodeId
}
