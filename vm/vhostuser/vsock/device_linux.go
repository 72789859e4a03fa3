package vsock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"

	"github.com/coracle-engine/coracle/vm/vhostuser"
)

const (
	maxConns  = 4096 // streams at once; the guest's requests beyond are refused
	anyPort   = math.MaxUint32
	firstPort = 1024 // of those we dial from
)

// errGone ends streams whose guest, or its driver, has gone away.
var errGone = fmt.Errorf("guest has gone away: %w", syscall.ECONNRESET)

// Device is the vsock device of one guest. It outlives the hypervisor: each Serve is one front end's connection.
type Device struct {
	cid uint64
	log *slog.Logger
	out outbox

	starting sync.Mutex // held while a queue starts

	mu        sync.Mutex // taken with a stream's mu held, never the other way round
	conns     map[ports]*conn
	listeners map[uint32]*listener
	nextPort  uint32
	running   [2]bool       // which of the queues the guest's driver has started
	up        chan struct{} // closed while both run
	stop      func()        // ends the running Serve, nil if there is none
	idle      sync.Cond     // stop became nil
	done      chan struct{} // closed by Close
}

// New makes a device that tells its guest the context id guestCID (at least 3).
func New(guestCID uint64, log *slog.Logger) *Device {
	d := &Device{
		cid: guestCID, log: log, out: outbox{cid: guestCID},
		conns: map[ports]*conn{}, listeners: map[uint32]*listener{},
		nextPort: firstPort + rand.Uint32N(math.MaxUint32/2), // a guest that outlived our predecessor may remember its ports
		up:       make(chan struct{}), done: make(chan struct{}),
	}
	d.idle.L = &d.mu
	return d
}

// Serve runs the device for one front end, until the front end disconnects (nil), ctx ends or the device is closed
// (net.ErrClosed). It closes conn. All streams end with it; the device can serve the next front end afterwards, one at a
// time. Listeners stay.
func (d *Device) Serve(ctx context.Context, conn *net.UnixConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d.mu.Lock()
	var err error
	switch {
	case d.isClosed():
		err = net.ErrClosed
	case d.stop != nil:
		err = errors.New("another front end is connected")
	default:
		d.stop = cancel
	}
	d.mu.Unlock()
	if err != nil {
		conn.Close()
		return fmt.Errorf("serve vsock device: %w", err)
	}
	err = vhostuser.Serve(ctx, conn, backend{d}, d.log)
	d.drop(errGone)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop = nil
	d.idle.Broadcast()
	if d.isClosed() {
		return fmt.Errorf("serve vsock device: %w", net.ErrClosed)
	}
	return err
}

// Dial opens a stream to a port of the guest. It waits for the guest's driver, bounded by ctx; a port that nobody listens
// on is an error of class vm.ErrRefused. The connection has CloseWrite.
func (d *Device) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	for {
		if err := d.await(ctx); err != nil {
			return nil, fmt.Errorf("dial guest port %d: %w", port, err)
		}
		c, err := d.add(port)
		if err == nil {
			c.send(opRequest, 0)
			err = c.outcome(ctx)
		}
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, errGone) { // else the driver restarted, or has yet to
			return nil, fmt.Errorf("dial guest port %d: %w", port, err)
		}
	}
}

// await waits until the guest's driver runs.
func (d *Device) await(ctx context.Context) error {
	d.mu.Lock()
	up := d.up
	d.mu.Unlock()
	select {
	case <-d.done:
		return net.ErrClosed
	default:
	}
	select {
	case <-up:
		return ctx.Err()
	case <-d.done:
		return net.ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("wait for the guest's vsock driver: %w", ctx.Err())
	}
}

// add makes a stream to a port of the guest from a free one of ours.
func (d *Device) add(port uint32) (*conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.conns) >= maxConns {
		return nil, fmt.Errorf("%d streams are open", len(d.conns))
	}
	select {
	case <-d.up:
	default:
		return nil, errGone
	}
	for { // ends: there are far more ports than streams and listeners
		if d.nextPort++; d.nextPort < firstPort || d.nextPort == anyPort {
			d.nextPort = firstPort
		}
		p := ports{d.nextPort, port}
		if d.conns[p] == nil && d.listeners[p.host] == nil {
			c := newConn(d, p)
			c.answered = make(chan struct{})
			d.conns[p] = c
			return c, nil
		}
	}
}

// forget takes c from the device, if it is still there.
func (d *Device) forget(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conns[c.ports] == c {
		delete(d.conns, c.ports)
	}
}

// drop ends all streams without a word to the guest.
func (d *Device) drop(err error) {
	d.mu.Lock()
	conns := make([]*conn, 0, len(d.conns))
	for _, c := range d.conns {
		conns = append(conns, c)
	}
	d.mu.Unlock()
	for _, c := range conns {
		c.mu.Lock()
		c.end(err)
		c.mu.Unlock()
	}
	d.out.clear()
}

// Close ends everything: Serve, every stream, every listener, every Dial. It returns when Serve has ended, and may be
// called twice.
func (d *Device) Close() error {
	d.mu.Lock()
	if !d.isClosed() {
		close(d.done)
	}
	if d.stop != nil {
		d.stop()
	}
	for d.stop != nil {
		d.idle.Wait()
	}
	var ls []*listener
	for _, l := range d.listeners {
		ls = append(ls, l)
	}
	d.mu.Unlock()
	for _, l := range ls {
		l.Close()
	}
	d.drop(net.ErrClosed)
	return nil
}

// isClosed is called with d.mu held.
func (d *Device) isClosed() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

// mark notes that a queue runs or has stopped.
func (d *Device) mark(queue int, running bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	was := d.running[0] && d.running[1]
	d.running[queue] = running
	switch is := d.running[0] && d.running[1]; {
	case is && !was:
		close(d.up)
	case was && !is:
		d.up = make(chan struct{})
	}
}

// backend is the device as vhostuser drives it. Queue 0 goes to the guest, queue 1 comes from it; the event queue stays
// in the front end.
type backend struct{ d *Device }

func (b backend) Features() uint64 { return 0 }
func (b backend) Config() []byte   { return binary.LittleEndian.AppendUint64(nil, b.d.cid) }
func (b backend) Queues() int      { return 2 }

func (b backend) Run(q *vhostuser.Queue) error {
	d := b.d
	d.start(q)
	run := d.out.run
	if q.Index() == 1 {
		run = d.receive
	}
	err := run(q)
	d.mark(q.Index(), false)
	if !errors.Is(err, vhostuser.ErrStopped) {
		d.drop(errGone)
	}
	return err
}

// start readies the device for a queue. A new driver knows no stream of the one before: its first queue ends them.
func (d *Device) start(q *vhostuser.Queue) {
	d.starting.Lock()
	defer d.starting.Unlock()
	d.mu.Lock()
	first := !d.running[0] && !d.running[1]
	d.mu.Unlock()
	if first && q.Fresh() {
		d.drop(errGone)
	}
	d.mark(q.Index(), true)
}

// receive takes the guest's packets.
func (d *Device) receive(q *vhostuser.Queue) error {
	var ch vhostuser.Chain
	for {
		q.DisableKicks()
		for {
			ok, err := q.Pop(&ch)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			d.packet(&ch)
			q.Push(&ch)
		}
		q.Notify()
		if q.EnableKicks() {
			continue
		}
		if err := q.Wait(); err != nil {
			return err
		}
	}
}

// packet handles one packet. What is not for us is dropped without an answer.
func (d *Device) packet(ch *vhostuser.Chain) {
	var b [headerSize]byte
	var h header
	if n, _ := ch.Read(b[:]); n < headerSize {
		d.log.Debug("dropped a packet of the guest", "bytes", n)
		return
	}
	h.decode(&b)
	if err := h.check(d.cid, ch.Readable()); err != nil {
		d.log.Debug("dropped a packet of the guest", "err", err)
		return
	}
	p := ports{host: h.dstPort, guest: h.srcPort}
	d.mu.Lock()
	c := d.conns[p]
	d.mu.Unlock()
	switch {
	case c != nil:
		c.receive(&h, ch)
	case h.op == opRequest:
		d.accept(p, &h)
	case h.op != opReset:
		d.refuse(p)
	}
}

func (d *Device) refuse(p ports) {
	d.out.send(nil, header{srcPort: p.host, dstPort: p.guest, op: opReset})
}

// accept answers the guest's request for a stream.
func (d *Device) accept(p ports, h *header) {
	if d.out.full() {
		return
	}
	c := newConn(d, p)
	c.open, c.w.alloc = true, h.bufAlloc
	d.mu.Lock()
	l := d.listeners[p.host]
	ok := l != nil && len(d.conns) < maxConns
	if ok {
		d.conns[p] = c
	}
	d.mu.Unlock()
	if !ok {
		d.refuse(p)
		return
	}
	c.send(opResponse, 0)
	select {
	case l.queue <- c:
	default:
		c.abandon()
		return
	}
	select {
	case <-l.done: // closed meanwhile, perhaps after it looked for streams to reset
		c.abandon()
	default:
	}
}
