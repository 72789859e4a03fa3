package fs

import (
	"encoding/binary"
	"fmt"
	"sync"
	"syscall"

	"github.com/coracle-engine/coracle/vm/vhostuser"
)

// opcode is a FUSE request's kind (linux/fuse.h, enum fuse_opcode).
type opcode uint32

// The kinds that the device itself tells apart.
const (
	opForget        opcode = 2
	opRead          opcode = 15
	opWrite         opcode = 16
	opFsync         opcode = 20
	opInit          opcode = 26
	opFsyncDir      opcode = 30
	opSetLockWait   opcode = 33
	opInterrupt     opcode = 36
	opDestroy       opcode = 38
	opBatchForget   opcode = 42
	opFallocate     opcode = 43
	opCopyFileRange opcode = 47
	opSyncFS        opcode = 50
)

const (
	inHeaderSize  = 40                // struct fuse_in_header
	writeHeadSize = inHeaderSize + 40 // and struct fuse_write_in
	outHeaderSize = 16                // struct fuse_out_header

	// maxData is how much one request may carry in each direction behind its headers, in bytes. A FileSystem offers no more
	// for max_write and max_pages.
	maxData = 1 << 20
	maxSize = maxData + 4096
	// maxCopy bounds a request that is no WRITE: an extended attribute of 64 KiB is the longest that Linux sends.
	maxCopy = 128 << 10
	// bigData is from where on a READ or WRITE is worth a worker of its own.
	bigData = 64 << 10
)

// request is one request of the guest, with memory of our own for what must not change while it is looked at.
type request struct {
	chain   vhostuser.Chain
	op      opcode
	in, out [][]byte // for Serve
	mine    bool     // out is memory of our own
	size    int      // bytes of the request
	room    int      // bytes for the answer

	inBuf, outBuf []byte
}

var requests = sync.Pool{New: func() any { return &request{inBuf: make([]byte, 512), outBuf: make([]byte, 512)} }}

// split readies in and out from a chain just taken. After an error only fail may be called.
func (r *request) split() error {
	r.op, r.in, r.out, r.mine = 0, r.in[:0], r.out[:0], true
	r.size, r.room = r.chain.Readable(), r.chain.Writable()
	if r.size < inHeaderSize {
		return fmt.Errorf("request of %d bytes", r.size)
	}
	head := r.inBuf[:min(r.size, writeHeadSize)]
	r.chain.Read(head)
	r.op = opcode(binary.LittleEndian.Uint32(head[4:]))
	extensions := binary.LittleEndian.Uint16(head[36:]) // behind the payload, and to be parsed
	payload := r.op == opWrite && extensions == 0
	switch {
	case r.size > maxSize || r.size > maxCopy && !payload:
		return fmt.Errorf("request %d of %d bytes", r.op, r.size)
	case r.room > maxSize:
		return fmt.Errorf("request %d with room for %d bytes", r.op, r.room)
	case payload:
		r.in = r.chain.Unread(append(r.in, head))
	default:
		r.inBuf = grow(r.inBuf, r.size, len(head))
		r.chain.Read(r.inBuf[len(head):r.size])
		r.in = append(r.in, r.inBuf[:r.size])
	}
	switch {
	case r.room == 0:
	case r.op == opRead:
		r.out, r.mine = r.chain.Room(r.out), false
	default:
		r.outBuf = grow(r.outBuf, r.room, 0)
		r.out = append(r.out, r.outBuf[:r.room])
	}
	return nil
}

// grow makes b at least n long and keeps its first bytes.
func grow(b []byte, n, keep int) []byte {
	if len(b) >= n {
		return b
	}
	bigger := make([]byte, n)
	copy(bigger, b[:keep])
	return bigger
}

// big is whether the request takes longer than to hand it to a worker does, or waits for a disk.
func (r *request) big() bool {
	switch r.op {
	case opRead:
		return r.room >= bigData
	case opWrite:
		return r.size >= bigData
	case opFsync, opFsyncDir, opSyncFS, opFallocate, opCopyFileRange, opSetLockWait:
		return true
	}
	return false
}

// finish puts the n bytes that Serve has written into the chain. A guest that made room for an answer gets one.
func (r *request) finish(n int) {
	switch {
	case n <= 0:
		r.fail()
	case r.mine:
		r.chain.Write(r.outBuf[:min(n, r.room)])
	default:
		r.chain.Wrote(n)
	}
}

// fail answers EIO to a request that wants an answer and has room for it: the guest would take what its memory held for one.
func (r *request) fail() {
	if r.size < inHeaderSize || r.room < outHeaderSize || r.op == opForget || r.op == opBatchForget || r.op == opInterrupt {
		return
	}
	var h [outHeaderSize]byte
	binary.LittleEndian.PutUint32(h[0:], outHeaderSize)
	eio := -int32(syscall.EIO)
	binary.LittleEndian.PutUint32(h[4:], uint32(eio))
	copy(h[8:], r.inBuf[8:16]) // what it is the answer to
	r.chain.Write(h[:])
}
