package vsock

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm/vhostuser/vhosttest"
)

const (
	guestCID    = 42
	guestBuffer = 256 << 10
	rxSize      = 4096 - 320 // what Linux has room for in a receive buffer
	skbSize     = 576        // what Linux counts for a packet however small
	txSlots     = 32
)

// guest is the driver and the sockets of a guest, as Linux 6.12 has them: small enough to read, strict about what the
// device may do.
type guest struct {
	t      testing.TB
	f      *vhosttest.Frontend
	rx, tx *vhosttest.Queue

	mu       sync.Mutex
	space    sync.Cond
	slots    []uint64       // free transmit buffers
	sending  map[int]uint64 // transmit buffers by chain
	buffers  map[int]uint64 // receive buffers by chain
	starved  bool           // offers no receive buffers
	down     bool
	mute     bool              // leaves packets for nobody unanswered
	withheld []uint64          // receive buffers not offered while starved
	conns    map[ports]*socket // by host's and guest's port
	listen   map[uint32]func(*socket)
	seen     []header // packets for nobody
	next     uint32
	wg       sync.WaitGroup
}

// boot starts a guest on d. The test's end stops it.
func boot(t testing.TB, d *Device) *guest {
	front, back := vhosttest.Pair(t)
	served := make(chan error, 1)
	go func() { served <- d.Serve(context.Background(), back) }()
	g := &guest{
		t: t, f: vhosttest.New(t, front, 8<<20), sending: map[int]uint64{}, buffers: map[int]uint64{},
		conns: map[ports]*socket{}, listen: map[uint32]func(*socket){}, next: 5000,
	}
	g.space.L = &g.mu
	g.f.Start()
	g.rx, g.tx = g.f.NewQueue(0, 128), g.f.NewQueue(1, 128)
	for range txSlots {
		g.slots = append(g.slots, g.f.Alloc(headerSize+maxPayload))
	}
	for range g.rx.Size {
		g.offer(g.f.Alloc(headerSize + rxSize))
	}
	g.rx.Publish()
	g.rx.Start(0)
	g.tx.Start(0)
	g.wg.Add(2)
	go g.receive()
	go g.transmitted()
	t.Cleanup(func() {
		g.shutdown()
		if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
	})
	return g
}

// shutdown is the end of the machine: no socket says goodbye.
func (g *guest) shutdown() {
	g.f.Close()
	g.rx.Close()
	g.tx.Close()
	g.mu.Lock()
	g.down = true
	g.space.Broadcast()
	for _, s := range g.conns {
		s.end(errGone)
	}
	g.mu.Unlock()
	g.wg.Wait()
}

func (g *guest) offer(addr uint64) {
	head, ok := g.rx.Add(vhosttest.Desc{Addr: addr, Len: headerSize + rxSize, Flags: vhosttest.Write})
	if !ok {
		g.t.Error("receive ring is full")
	}
	g.buffers[head] = addr
}

// starve stops, or starts again, to offer receive buffers.
func (g *guest) starve(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.starved = on; on {
		return
	}
	for _, addr := range g.withheld {
		g.offer(addr)
	}
	g.withheld = nil
	g.rx.Publish()
	g.rx.Kick(false)
}

func (g *guest) receive() {
	defer g.wg.Done()
	for {
		g.mu.Lock()
		var spent []uint64
		for {
			head, n, ok := g.rx.Take()
			if !ok {
				break
			}
			addr, ok := g.buffers[head]
			if !ok { // a hostile guest's
				continue
			}
			delete(g.buffers, head)
			g.handle(g.f.Bytes(addr, n))
			spent = append(spent, addr)
		}
		for _, addr := range spent {
			if g.starved {
				g.withheld = append(g.withheld, addr)
			} else {
				g.offer(addr)
			}
		}
		g.rx.Publish()
		if len(spent) > 0 {
			g.rx.Kick(false)
		}
		again := g.rx.Arm()
		g.mu.Unlock()
		if !again && !g.rx.Wait() {
			return
		}
	}
}

func (g *guest) transmitted() {
	defer g.wg.Done()
	for g.tx.Wait() {
		g.mu.Lock()
		g.reap()
		g.mu.Unlock()
	}
}

func (g *guest) reap() {
	for {
		head, _, ok := g.tx.Take()
		if !ok {
			break
		}
		g.slots = append(g.slots, g.sending[head])
		delete(g.sending, head)
		g.space.Signal()
	}
}

// send sends a packet: the header in a descriptor of its own, the data in pieces, or all in one. g.mu is held.
func (g *guest) send(h header, data []byte) {
	for len(g.slots) == 0 {
		if g.down {
			return
		}
		if g.reap(); len(g.slots) == 0 && !g.tx.Arm() {
			g.space.Wait()
		}
	}
	addr := g.slots[len(g.slots)-1]
	g.slots = g.slots[:len(g.slots)-1]
	b := g.f.Bytes(addr, headerSize+len(data))
	h.encode((*[headerSize]byte)(b))
	copy(b[headerSize:], data)
	bufs := []vhosttest.Desc{{Addr: addr, Len: uint32(len(b))}}
	if len(data) > 100 {
		third := uint32(len(data) / 3)
		bufs = []vhosttest.Desc{
			{Addr: addr, Len: headerSize - 3}, {Addr: addr + headerSize - 3, Len: 3 + third},
			{Addr: addr + headerSize + uint64(third), Len: uint32(len(data)) - third},
		}
	}
	head, ok := g.tx.Add(bufs...)
	if !ok {
		g.t.Error("transmit ring is full")
	}
	g.sending[head] = addr
	g.tx.Publish()
	g.tx.Kick(false)
}

// raw sends a packet that no socket of the guest would send, with what fill changes.
func (g *guest) raw(p ports, op uint16, data []byte, fill func(*header)) {
	h := header{
		srcCID: guestCID, dstCID: hostCID, srcPort: p.guest, dstPort: p.host, typ: typeStream, op: op,
		len: uint32(len(data)), bufAlloc: guestBuffer,
	}
	if fill != nil {
		fill(&h)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.send(h, data)
}

// handle takes a packet of the host.
func (g *guest) handle(b []byte) {
	var h header
	if len(b) < headerSize {
		g.t.Errorf("packet of %d bytes", len(b))
		return
	}
	h.decode((*[headerSize]byte)(b))
	data := b[headerSize:]
	if h.srcCID != hostCID || h.dstCID != guestCID || h.typ != typeStream || int(h.len) != len(data) {
		g.t.Errorf("bad packet %+v with %d bytes", h, len(data))
	}
	p := ports{host: h.srcPort, guest: h.dstPort}
	if s := g.conns[p]; s != nil {
		s.handle(&h, data)
		return
	}
	accept := g.listen[p.guest]
	switch {
	case h.op == opRequest && accept != nil:
		s := g.socket(p)
		s.open, s.alloc = true, h.bufAlloc
		s.send(opResponse, 0, nil)
		g.wg.Add(1)
		go func() {
			defer g.wg.Done()
			accept(s)
		}()
	case h.op != opReset && !g.mute:
		g.seen = append(g.seen, h)
		g.send(header{srcCID: guestCID, dstCID: hostCID, srcPort: p.guest, dstPort: p.host, typ: typeStream, op: opReset}, nil)
	default:
		g.seen = append(g.seen, h)
	}
}

// resets counts the host's resets to a guest's port that has no socket.
func (g *guest) resets(port uint32) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, h := range g.seen {
		if h.op == opReset && h.dstPort == port {
			n++
		}
	}
	return n
}

func (g *guest) serve(port uint32, accept func(*socket)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.listen[port] = accept
}

func (g *guest) socket(p ports) *socket {
	s := &socket{g: g, ports: p, buffer: guestBuffer}
	s.ready.L = &g.mu
	g.conns[p] = s
	return s
}

// dial opens a stream to a port of the host.
func (g *guest) dial(port uint32) (*socket, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.next++
	s := g.socket(ports{host: port, guest: g.next})
	s.send(opRequest, 0, nil)
	for !s.open && s.err == nil {
		s.ready.Wait()
	}
	return s, s.err
}

// socket is one of the guest's; its guest's mu guards it.
type socket struct {
	g       *guest
	ports   ports
	ready   sync.Cond
	buffer  uint32
	open    bool
	in      [][]byte // packets not read to their end
	size    int
	fwd     uint32
	told    uint32
	cnt     uint32
	alloc   uint32
	peerFwd uint32
	peer    uint32 // directions that the host has shut
	shut    uint32 // and we
	err     error
}

func (s *socket) send(op uint16, flags uint32, data []byte) {
	s.told = s.fwd
	s.g.send(header{
		srcCID: guestCID, dstCID: hostCID, srcPort: s.ports.guest, dstPort: s.ports.host, typ: typeStream, op: op,
		flags: flags, len: uint32(len(data)), bufAlloc: s.buffer, fwdCnt: s.fwd,
	}, data)
}

func (s *socket) handle(h *header, data []byte) {
	s.alloc, s.peerFwd = h.bufAlloc, h.fwdCnt
	switch h.op {
	case opResponse:
		s.open = true
	case opRW:
		s.in = append(s.in, append([]byte(nil), data...))
		s.size += len(data)
		if s.size > int(s.buffer) || len(s.in)*skbSize > int(s.buffer) {
			s.g.t.Errorf("host overruns the guest's buffer: %d bytes in %d packets", s.size, len(s.in))
		}
	case opCreditRequest:
		s.send(opCreditUpdate, 0, nil)
	case opShutdown:
		s.peer |= h.flags
		if s.peer == shutBoth && s.size == 0 {
			s.send(opReset, 0, nil)
			s.end(net.ErrClosed)
		}
	case opReset:
		s.end(errors.New("reset by the host"))
	}
	s.ready.Broadcast()
}

func (s *socket) end(err error) {
	if s.err == nil {
		s.err = err
	}
	delete(s.g.conns, s.ports)
	s.ready.Broadcast()
}

func (s *socket) Read(p []byte) (int, error) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	for s.size == 0 {
		if s.peer&shutSend != 0 {
			return 0, io.EOF
		}
		if s.err != nil {
			return 0, s.err
		}
		s.ready.Wait()
	}
	n := 0
	for n < len(p) && len(s.in) > 0 {
		k := copy(p[n:], s.in[0])
		n += k
		if s.in[0] = s.in[0][k:]; len(s.in[0]) == 0 {
			s.in = s.in[1:]
		}
	}
	s.size -= n
	s.fwd += uint32(n)
	if delta := s.fwd - s.told; s.err == nil && (s.buffer-delta < maxPayload || s.size == 0) {
		s.send(opCreditUpdate, 0, nil)
	}
	return n, nil
}

func (s *socket) Write(p []byte) (int, error) {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	total := 0
	for total < len(p) {
		free := min(s.alloc, s.buffer) - (s.cnt - s.peerFwd)
		switch {
		case s.err != nil:
			return total, s.err
		case s.peer&shutReceive != 0 || s.shut&shutSend != 0:
			return total, io.ErrClosedPipe
		case free == 0 || free > s.alloc:
			s.ready.Wait()
			continue
		}
		n := min(int(free), len(p)-total, maxPayload)
		s.cnt += uint32(n)
		s.send(opRW, 0, p[total:total+n])
		total += n
	}
	return total, nil
}

func (s *socket) CloseWrite() error { return s.Shutdown(shutSend) }

func (s *socket) Shutdown(how uint32) error {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	s.shut |= how
	if s.err == nil {
		s.send(opShutdown, s.shut, nil)
	}
	return s.err
}

// Close leaves the rest to the host's reset, as Linux does.
func (s *socket) Close() error { return s.Shutdown(shutBoth) }

// waitFor waits until cond holds.
func waitFor(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

func newDevice(t testing.TB) *Device {
	d := New(guestCID, slog.New(slog.DiscardHandler))
	t.Cleanup(func() { d.Close() })
	return d
}

func dial(t testing.TB, d *Device, port uint32) *conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := d.Dial(ctx, port)
	if err != nil {
		t.Fatal(err)
	}
	return c.(*conn)
}

func listen(t testing.TB, d *Device, port uint32) net.Listener {
	t.Helper()
	l, err := d.Listen(port)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// echoServer sends back what it reads, then closes.
func echoServer(s *socket) {
	io.Copy(s, struct{ io.Reader }{s})
	s.CloseWrite()
	s.Close()
}
