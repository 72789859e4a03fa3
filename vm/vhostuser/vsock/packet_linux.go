package vsock

import (
	"encoding/binary"
	"fmt"
)

// The packets of virtio 1.2 section 5.10.6: a header of 44 little-endian bytes, and for opRW the data.
const (
	headerSize = 44
	maxPayload = 64 << 10 // what Linux puts into one packet at most
	typeStream = 1
	hostCID    = 2

	opRequest       = 1
	opResponse      = 2
	opReset         = 3
	opShutdown      = 4
	opRW            = 5
	opCreditUpdate  = 6
	opCreditRequest = 7

	shutReceive = 1 // opShutdown: the sender of the packet receives no more
	shutSend    = 2 // and sends no more
	shutBoth    = shutReceive | shutSend
)

// header is a packet's header.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	len              uint32 // of the data behind it
	typ, op          uint16
	flags            uint32
	bufAlloc         uint32 // how much the sender of the packet can buffer for this stream
	fwdCnt           uint32 // how much of it went to the sender's application, ever, modulo 2^32
}

func (h *header) decode(b *[headerSize]byte) {
	le := binary.LittleEndian
	*h = header{
		srcCID: le.Uint64(b[0:]), dstCID: le.Uint64(b[8:]), srcPort: le.Uint32(b[16:]), dstPort: le.Uint32(b[20:]),
		len: le.Uint32(b[24:]), typ: le.Uint16(b[28:]), op: le.Uint16(b[30:]), flags: le.Uint32(b[32:]),
		bufAlloc: le.Uint32(b[36:]), fwdCnt: le.Uint32(b[40:]),
	}
}

func (h *header) encode(b *[headerSize]byte) {
	le := binary.LittleEndian
	le.PutUint64(b[0:], h.srcCID)
	le.PutUint64(b[8:], h.dstCID)
	le.PutUint32(b[16:], h.srcPort)
	le.PutUint32(b[20:], h.dstPort)
	le.PutUint32(b[24:], h.len)
	le.PutUint16(b[28:], h.typ)
	le.PutUint16(b[30:], h.op)
	le.PutUint32(b[32:], h.flags)
	le.PutUint32(b[36:], h.bufAlloc)
	le.PutUint32(b[40:], h.fwdCnt)
}

// check tells what is wrong with a packet of the guest cid that has data bytes behind its header.
func (h *header) check(cid uint64, data int) error {
	switch {
	case h.srcCID != cid || h.dstCID != hostCID:
		return fmt.Errorf("packet from context %d to %d", h.srcCID, h.dstCID)
	case h.typ != typeStream:
		return fmt.Errorf("packet of socket type %d", h.typ)
	case h.len > maxPayload || int(h.len) > data:
		return fmt.Errorf("packet claims %d bytes of data and has %d", h.len, data)
	case h.len > 0 && h.op != opRW:
		return fmt.Errorf("packet of operation %d with data", h.op)
	}
	return nil
}
