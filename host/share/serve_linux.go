package share

import (
	"encoding/binary"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fileSystem is how go-fuse calls a Server. What it does not answer, the guest's kernel does without.
type fileSystem struct {
	fuse.RawFileSystem
	*Server
}

func (s *Server) fileSystem() *fileSystem {
	return &fileSystem{fuse.NewDefaultRawFileSystem(), s}
}

// Requests that are told apart before go-fuse sees them (linux/fuse.h, enum fuse_opcode).
const (
	opForget      = 2
	opInit        = 26
	opDestroy     = 38
	opNotifyReply = 41
	opBatchForget = 42
)

// minima are the lengths of requests, with their header, for those whose go-fuse type is longer than the header. What is
// shorter is answered here: go-fuse would put it into the program's log, for as often as the guest likes.
var minima = map[uint32]uintptr{
	opForget: unsafe.Sizeof(fuse.ForgetIn{}), 3: unsafe.Sizeof(fuse.GetAttrIn{}), 4: unsafe.Sizeof(fuse.SetAttrIn{}),
	8: unsafe.Sizeof(fuse.MknodIn{}), 9: unsafe.Sizeof(fuse.MkdirIn{}), 12: headerSize + 8, 13: unsafe.Sizeof(fuse.LinkIn{}),
	14: unsafe.Sizeof(fuse.OpenIn{}), 15: unsafe.Sizeof(fuse.ReadIn{}), 16: unsafe.Sizeof(fuse.WriteIn{}),
	18: unsafe.Sizeof(fuse.ReleaseIn{}), 20: unsafe.Sizeof(fuse.FsyncIn{}), 21: headerSize + 8,
	22: unsafe.Sizeof(fuse.GetXAttrIn{}), 23: unsafe.Sizeof(fuse.GetXAttrIn{}), 25: unsafe.Sizeof(fuse.FlushIn{}),
	opInit: headerSize + 16, 27: unsafe.Sizeof(fuse.OpenIn{}), 28: unsafe.Sizeof(fuse.ReadIn{}),
	29: unsafe.Sizeof(fuse.ReleaseIn{}), 30: unsafe.Sizeof(fuse.FsyncIn{}), 31: unsafe.Sizeof(fuse.LkIn{}),
	32: unsafe.Sizeof(fuse.LkIn{}), 33: unsafe.Sizeof(fuse.LkIn{}), 34: unsafe.Sizeof(fuse.AccessIn{}),
	35: unsafe.Sizeof(fuse.CreateIn{}), 36: unsafe.Sizeof(fuse.InterruptIn{}), 37: headerSize + 16,
	39: unsafe.Sizeof(fuse.IoctlIn{}), 40: headerSize + 24, opBatchForget: headerSize + 8,
	43: unsafe.Sizeof(fuse.FallocateIn{}), 44: unsafe.Sizeof(fuse.ReadIn{}), 45: unsafe.Sizeof(fuse.RenameIn{}),
	46: unsafe.Sizeof(fuse.LseekIn{}), 47: unsafe.Sizeof(fuse.CopyFileRangeIn{}), 51: unsafe.Sizeof(fuse.CreateIn{}),
	52: unsafe.Sizeof(fuse.StatxIn{}), 53: unsafe.Sizeof(fuse.CopyFileRangeIn{}),
	opNotifyReply: 1 << 30, // we never ask for one
}

const headerSize = unsafe.Sizeof(fuse.InHeader{})

// answerSize is the length of an answer's header.
const answerSize = 16

// Serve answers one request: in is the request, out the room for the answer. It returns how many bytes it wrote, 0 for a
// request that has no answer. Both can lie in memory that the guest changes meanwhile.
func (s *Server) Serve(in, out [][]byte) int {
	var head [headerSize]byte
	total := 0
	for _, b := range in {
		if total < len(head) {
			copy(head[total:], b)
		}
		total += len(b)
	}
	room := 0
	for _, b := range out {
		room += len(b)
	}
	if total < len(head) {
		return 0
	}
	op := binary.NativeEndian.Uint32(head[4:])
	if uintptr(total) < max(minima[op], headerSize) || room < answerSize && op != opForget && op != opBatchForget {
		return refuse(op, head[:], out, fuse.EINVAL)
	}
	if op == opInit {
		return s.begin(in, out, head[:])
	}
	if op == opDestroy && s.protocol.Load() != nil { // the guest unmounts; it may mount again
		s.Reset()
		return refuse(op, head[:], out, fuse.OK)
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	protocol := s.protocol.Load()
	if protocol == nil {
		return refuse(op, head[:], out, fuse.EIO)
	}
	n, _ := protocol.HandleRequest(in, out)
	return n
}

// begin answers INIT, from which on nothing holds that was before.
func (s *Server) begin(in, out [][]byte, head []byte) int {
	var version [8]byte
	gather(version[:], in, int(headerSize))
	if binary.NativeEndian.Uint32(version[:]) != 7 || binary.NativeEndian.Uint32(version[4:]) < 31 {
		return refuse(opInit, head, out, fuse.Status(unix.EPROTO))
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	s.reset()
	protocol := fuse.NewProtocolServer(s.fileSystem(), s.options())
	n, _ := protocol.HandleRequest(in, out)
	s.protocol.Store(protocol)
	return n
}

// gather copies the bytes of pieces from off on to dst.
func gather(dst []byte, pieces [][]byte, off int) {
	for _, p := range pieces {
		if off >= len(p) {
			off -= len(p)
			continue
		}
		n := copy(dst, p[off:])
		dst, off = dst[n:], 0
	}
}

// refuse answers the request with a status alone.
func refuse(op uint32, head []byte, out [][]byte, st fuse.Status) int {
	if op == opForget || op == opBatchForget || op == opNotifyReply {
		return 0
	}
	answer := binary.NativeEndian.AppendUint32(nil, answerSize)
	answer = binary.NativeEndian.AppendUint32(answer, uint32(-st))
	answer = append(answer, head[8:16]...)
	written := 0
	for _, b := range out {
		written += copy(b, answer[written:])
	}
	if written < len(answer) {
		return 0
	}
	return written
}
