package forward

import (
	"bufio"
	"container/list"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	idleTime   = 90 * time.Second // a flow that is silent so long ends
	queueSize  = 64               // datagrams that wait for one flow's stream
	queueBytes = 16 << 20         // of all flows together
)

// flowKey is who speaks with whom: client, and which address of a port it asked.
type flowKey struct {
	port   *port
	client netip.AddrPort
	asked  netip.Addr // the zero value where the port is open at one address alone
}

// flow is one client of a UDP port.
type flow struct {
	key   flowKey
	ctx   context.Context
	end   context.CancelFunc
	idle  *time.Timer
	queue chan []byte // from the client to the guest
	place *list.Element
}

// flows are those of one machine, at most max.
type flows struct {
	max    int
	queued atomic.Int64 // bytes in all queues

	mu    sync.Mutex
	byKey map[flowKey]*flow
	order *list.List // the one used last is at the front
}

func newFlows(limit int) *flows {
	return &flows{max: limit, byKey: map[flowKey]*flow{}, order: list.New()}
}

// get returns k's flow, a fresh one where there is none. In its favour the one that was silent longest may end.
func (s *flows) get(k flowKey, r *route) (fl *flow, fresh bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fl := s.byKey[k]; fl != nil && fl.ctx.Err() == nil {
		s.order.MoveToFront(fl.place)
		fl.idle.Reset(idleTime)
		return fl, false
	}
	if s.order.Len() >= s.max {
		oldest := s.order.Back().Value.(*flow)
		s.remove(oldest)
		oldest.end()
	}
	fl = &flow{key: k, queue: make(chan []byte, queueSize)}
	fl.ctx, fl.end = context.WithCancel(r.ctx)
	fl.idle = time.AfterFunc(idleTime, fl.end)
	fl.place = s.order.PushFront(fl)
	s.byKey[k] = fl
	return fl, true
}

// touch notes that fl is in use.
func (s *flows) touch(fl *flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byKey[fl.key] == fl {
		s.order.MoveToFront(fl.place)
		fl.idle.Reset(idleTime)
	}
}

// drop forgets fl, which has ended.
func (s *flows) drop(fl *flow) {
	fl.end()
	fl.idle.Stop()
	s.mu.Lock()
	s.remove(fl)
	s.mu.Unlock()
	for {
		select {
		case b := <-fl.queue:
			s.queued.Add(int64(-len(b)))
		default:
			return
		}
	}
}

// remove is called with mu held; it may be called twice.
func (s *flows) remove(fl *flow) {
	if s.byKey[fl.key] == fl {
		delete(s.byKey, fl.key)
	}
	s.order.Remove(fl.place)
}

// offer queues a copy of b for fl, or loses it where the guest does not keep up: it is UDP.
func (s *flows) offer(fl *flow, b []byte) {
	if s.queued.Load() > queueBytes {
		return
	}
	select {
	case fl.queue <- append([]byte(nil), b...):
		s.queued.Add(int64(len(b)))
	default:
	}
}

// receive serves a UDP port until it is closed.
func (f *Forwarder) receive(p *port, conn *net.UDPConn) {
	_ = conn.SetReadBuffer(1 << 20) // as far as the system lets us
	sock := newPackets(conn, p.key.at.Addr())
	buf := make([]byte, guestapi.MaxDatagram+1)
	pause := firstPause
	for {
		n, client, asked, err := sock.read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		r := p.current()
		if err != nil { // Windows tells here that an earlier answer found nobody
			select {
			case <-time.After(pause):
			case <-r.ctx.Done():
			}
			pause = min(2*pause, lastPause)
			continue
		}
		pause = firstPause
		fl, fresh := f.flows.get(flowKey{p, client, asked}, r)
		f.flows.offer(fl, buf[:n])
		if fresh {
			f.wait.Go(func() {
				defer f.flows.drop(fl)
				f.converse(r, fl, sock)
			})
		}
	}
}

// converse carries a flow's datagrams both ways until it ends.
func (f *Forwarder) converse(r *route, fl *flow, sock *packets) {
	s, err := f.dial(fl.ctx, r, fl.key.client)
	if err != nil {
		if fl.ctx.Err() == nil {
			f.cfg.Log.Warn("connect a client to its container", "port", fl.key.port.key, "to", r.forward.To, "err", err)
		}
		return
	}
	defer context.AfterFunc(fl.ctx, func() { s.Close() })()
	var answers sync.WaitGroup
	answers.Go(func() {
		defer fl.end()
		f.answer(fl, s, sock)
	})
	for fl.ctx.Err() == nil {
		select {
		case b := <-fl.queue:
			f.flows.queued.Add(int64(-len(b)))
			if guestapi.WriteDatagram(s, b) != nil {
				fl.end()
			}
		case <-fl.ctx.Done():
		}
	}
	s.Close()
	answers.Wait()
}

// datagrams has buffers of a longest datagram's size: a flow holds one only while it has an answer in its hands.
var datagrams = sync.Pool{New: func() any { return new([guestapi.MaxDatagram]byte) }}

// answer sends what the guest says to the client, from the address that the client asked.
func (f *Forwarder) answer(fl *flow, s stream, sock *packets) {
	in := bufio.NewReaderSize(s, smallSize)
	for {
		if _, err := in.Peek(1); err != nil {
			return
		}
		buf := datagrams.Get().(*[guestapi.MaxDatagram]byte)
		n, err := guestapi.ReadDatagram(in, buf[:])
		if err == nil {
			f.flows.touch(fl)
			sock.write(buf[:n], fl.key.client, fl.key.asked)
		}
		datagrams.Put(buf)
		if err != nil {
			return
		}
	}
}

// packets is a UDP socket that knows which address a datagram was sent to, and can answer from there. Only a socket that is
// open at all addresses needs to ask.
type packets struct {
	conn *net.UDPConn
	v4   *ipv4.PacketConn // nil unless the socket is 0.0.0.0's
	v6   *ipv6.PacketConn // nil unless it is ::'s
}

func newPackets(conn *net.UDPConn, at netip.Addr) *packets {
	p := &packets{conn: conn}
	switch {
	case at == netip.IPv4Unspecified():
		v4 := ipv4.NewPacketConn(conn)
		if v4.SetControlMessage(ipv4.FlagDst, true) == nil { // not on Windows
			p.v4 = v4
		}
	case at == netip.IPv6Unspecified():
		v6 := ipv6.NewPacketConn(conn)
		if v6.SetControlMessage(ipv6.FlagDst, true) == nil {
			p.v6 = v6
		}
	}
	return p
}

func (p *packets) read(buf []byte) (n int, client netip.AddrPort, asked netip.Addr, err error) {
	var from net.Addr
	var dst net.IP
	switch {
	case p.v4 != nil:
		var cm *ipv4.ControlMessage
		if n, cm, from, err = p.v4.ReadFrom(buf); cm != nil {
			dst = cm.Dst
		}
	case p.v6 != nil:
		var cm *ipv6.ControlMessage
		if n, cm, from, err = p.v6.ReadFrom(buf); cm != nil {
			dst = cm.Dst
		}
	default:
		n, client, err = p.conn.ReadFromUDPAddrPort(buf)
		return n, client, asked, err
	}
	if err != nil {
		return n, client, asked, err
	}
	if asked, _ = netip.AddrFromSlice(dst); asked.IsMulticast() {
		asked = netip.Addr{}
	}
	return n, from.(*net.UDPAddr).AddrPort(), asked, nil
}

// write sends an answer; that it may be lost is UDP's nature.
func (p *packets) write(b []byte, client netip.AddrPort, asked netip.Addr) {
	to := net.UDPAddrFromAddrPort(client)
	err := errors.New("no address to answer from")
	switch {
	case !asked.IsValid():
	case p.v4 != nil:
		_, err = p.v4.WriteTo(b, &ipv4.ControlMessage{Src: asked.AsSlice()}, to)
	case p.v6 != nil:
		_, err = p.v6.WriteTo(b, &ipv6.ControlMessage{Src: asked.AsSlice()}, to)
	}
	if err != nil { // a broadcast address is none to answer from
		_, _ = p.conn.WriteToUDPAddrPort(b, client)
	}
}
