package vsock

import (
	"encoding/binary"
	"log/slog"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm/vhostuser"
)

// fuzzPacket makes a packet of 12 bytes of the fuzzer's, so that most of them mean something to a stream.
func fuzzPacket(b []byte) []byte {
	h := header{
		srcCID: guestCID, dstCID: hostCID, srcPort: 1 + uint32(b[0]%4), dstPort: hostPort, typ: typeStream, op: uint16(b[1] % 9),
		flags: uint32(b[2]), len: uint32(binary.LittleEndian.Uint16(b[3:])), bufAlloc: uint32(b[5]) << 10,
		fwdCnt: uint32(int32(int8(b[6]))),
	}
	switch b[7] % 16 {
	case 1:
		h.srcCID = uint64(b[8])
	case 2:
		h.dstCID = uint64(b[8])
	case 3:
		h.typ = uint16(b[8])
	case 4:
		h.dstPort = uint32(b[8])
	case 5:
		h.len = binary.LittleEndian.Uint32(b[8:])
	}
	p := make([]byte, headerSize+int(binary.LittleEndian.Uint16(b[3:])))
	h.encode((*[headerSize]byte)(p))
	if b[7]&0x80 != 0 {
		p = p[:b[9]%headerSize]
	}
	return p
}

// FuzzPackets gives a device packets of a guest, while the application does things to the streams that come of them.
func FuzzPackets(f *testing.F) {
	step := func(op, flags, app byte, n uint16) []byte {
		b := []byte{0, op, flags, 0, 0, 255, 0, 0, 0, 0, 0, app}
		binary.LittleEndian.PutUint16(b[3:], n)
		return b
	}
	var life []byte
	for _, s := range [][]byte{
		step(opRequest, 0, 0, 0), step(opRW, 0, 1, 1000), step(opRW, 0, 2, 65535), step(opCreditRequest, 0, 3, 0),
		step(opCreditUpdate, 0, 4, 0), step(opShutdown, shutSend, 1, 0), step(opShutdown, shutBoth, 5, 0), step(opReset, 0, 0, 0),
	} {
		life = append(life, s...)
	}
	f.Add(life)
	f.Add(append(step(opRequest, 0, 5, 0), step(opRW, 0, 1, 7)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := New(guestCID, slog.New(slog.DiscardHandler))
		defer d.Close()
		l := listen(t, d, hostPort).(*listener)
		var cs []*conn
		for range 200 {
			if len(b) < 12 {
				return
			}
			p := fuzzPacket(b)
			app := b[11]
			b = b[12:]
			half := len(p) / 2
			d.packet(vhostuser.NewChain([][]byte{p[:half], p[half:]}, nil))
			select {
			case c := <-l.queue:
				c.SetDeadline(time.Unix(1, 0))
				cs = append(cs, c)
			default:
			}
			if len(cs) > 0 {
				use(cs[int(app>>4)%len(cs)], app%6)
			}
			for _, c := range cs {
				if c.r.buf.n > bufferSize || len(c.w.pending) > maxPending || c.w.cnt-c.w.fwd > 1<<18 {
					t.Fatalf("stream holds %d and %d bytes, %d are in flight", c.r.buf.n, len(c.w.pending), c.w.cnt-c.w.fwd)
				}
			}
			if len(d.conns) > 4 || len(d.out.control) > 1000 {
				t.Fatalf("%d streams, %d packets wait", len(d.conns), len(d.out.control))
			}
		}
	})
}

// use does one thing of an application's.
func use(c *conn, what byte) {
	switch what {
	case 1:
		c.SetReadDeadline(time.Time{})
		c.mu.Lock()
		ready := c.r.buf.n > 0 || c.readError(false) != nil
		c.mu.Unlock()
		if ready {
			c.Read(make([]byte, 5000))
		}
		c.SetReadDeadline(time.Unix(1, 0))
	case 2:
		c.Read(make([]byte, 1))
	case 3:
		c.Write([]byte("never sent"))
	case 4:
		c.CloseWrite()
	case 5:
		c.Close()
	}
}
