package network

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	lengthSize = 4       // before each frame
	maxPacket  = 1 << 16 // a frame's payload; longer ones are skipped
	// readAhead takes many small frames in one read; the body of a large one is read straight to where it stays.
	readAhead = 16 << 10
	// busy is how much waits to be written before pace holds up who has more.
	busy = 4 << 20
	// What waits beyond these is dropped: TCP's packets share their data with its send buffers, which are bounded by
	// themselves; all others only as far as they do not hold up the former. The stack itself cannot be made to wait: its
	// workers would spin for whoever waits, while the reader of the cable might be one who does.
	maxQueueTCP   = 512 << 20
	maxQueueOther = 16 << 20
	// maxBatch bounds one write, in packets.
	maxBatch = 256
)

// gatewayMAC is ours, from the range that anybody may use.
const gatewayMAC = tcpip.LinkAddress("\x52\x55\xc0\xa8\x41\x01")

// cable is the stack's network card: a stack.LinkEndpoint whose frames are those of a stream, each behind its length as 32
// bits, big-endian (QEMU's net/stream.c). One guest is at its other end, so no address is ever asked for: frames go to
// whoever spoke last.
type cable struct {
	conn   net.Conn
	mtu    uint32
	local  tcpip.LinkAddress
	accept func(proto tcpip.NetworkProtocolNumber, packet []byte) bool // whether the stack gets it

	mu         sync.Mutex
	filled     *sync.Cond // there is something in queue, or err: transmit waits for it
	drained    *sync.Cond // bytes is no longer busy, or err: pace waits for it
	queue      []*stack.PacketBuffer
	bytes      int // in queue
	err        error
	remote     tcpip.LinkAddress
	dispatcher stack.NetworkDispatcher
}

func newCable(conn net.Conn, mtu int, local tcpip.LinkAddress, accept func(tcpip.NetworkProtocolNumber, []byte) bool) *cable {
	c := &cable{conn: conn, mtu: uint32(mtu), local: local, accept: accept, remote: header.EthernetBroadcastAddress}
	c.filled, c.drained = sync.NewCond(&c.mu), sync.NewCond(&c.mu)
	return c
}

// receive gives the stack what comes from the guest. It returns when the stream ends, with io.EOF between two frames.
func (c *cable) receive() error {
	r := bufio.NewReaderSize(c.conn, readAhead)
	var remote tcpip.LinkAddress
	for {
		head, err := r.Peek(lengthSize)
		if err != nil {
			if errors.Is(err, io.EOF) && len(head) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		size := int64(binary.BigEndian.Uint32(head))
		r.Discard(lengthSize)
		if size < header.EthernetMinimumSize || size > header.EthernetMinimumSize+maxPacket {
			if _, err := io.CopyN(io.Discard, r, size); err != nil {
				return fmt.Errorf("skip frame: %w", err)
			}
			continue
		}
		var eth [header.EthernetMinimumSize]byte
		packet := buffer.NewViewSize(int(size) - len(eth))
		_, err = io.ReadFull(r, eth[:])
		if err == nil {
			_, err = io.ReadFull(r, packet.AsSlice())
		}
		if err != nil {
			packet.Release()
			return fmt.Errorf("read frame: %w", err)
		}
		if src := string(eth[6:12]); src != string(remote) && eth[6]&1 == 0 {
			remote = tcpip.LinkAddress(src)
			c.mu.Lock()
			c.remote = remote
			c.mu.Unlock()
		}
		c.deliver(header.Ethernet(eth[:]), packet)
	}
}

func (c *cable) deliver(eth header.Ethernet, packet *buffer.View) {
	proto := eth.Type()
	forUs := string(eth[:6]) == string(c.local)
	if !forUs && proto != header.ARPProtocolNumber || !c.accept(proto, packet.AsSlice()) {
		packet.Release()
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(packet)})
	defer pkt.DecRef()
	c.dispatcher.DeliverNetworkPacket(proto, pkt)
}

// AddHeader puts length and ethernet header before a packet.
func (c *cable) AddHeader(pkt *stack.PacketBuffer) {
	size := pkt.Size() + header.EthernetMinimumSize
	h := pkt.LinkHeader().Push(lengthSize + header.EthernetMinimumSize)
	binary.BigEndian.PutUint32(h, uint32(size))
	c.mu.Lock()
	remote := c.remote
	c.mu.Unlock()
	header.Ethernet(h[lengthSize:]).Encode(&header.EthernetFields{SrcAddr: c.local, DstAddr: remote, Type: pkt.NetworkProtocolNumber})
}

// WritePackets leaves packets to transmit.
func (c *cable) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, pkt := range list.AsSlice() {
		limit := maxQueueOther
		if pkt.TransportProtocolNumber == header.TCPProtocolNumber {
			limit = maxQueueTCP
		}
		if c.err != nil {
			return i, &tcpip.ErrClosedForSend{}
		}
		if c.bytes > limit {
			return i, &tcpip.ErrNoBufferSpace{}
		}
		c.queue = append(c.queue, pkt.IncRef())
		c.bytes += pkt.Size()
	}
	c.filled.Signal()
	return list.Len(), nil
}

// pace waits while the cable is busy. Who asks it before each write keeps what many connections send at once from waiting in
// the cable for longer than TCP waits for answers.
func (c *cable) pace() {
	c.mu.Lock()
	for c.bytes > busy && c.err == nil {
		c.drained.Wait()
	}
	c.mu.Unlock()
}

// transmit writes what WritePackets left until the stream fails or stop is called, as many packets at once as there are.
func (c *cable) transmit() {
	var batch []*stack.PacketBuffer
	var slices net.Buffers
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && c.err == nil {
			c.filled.Wait()
		}
		if c.err != nil {
			left := c.queue
			c.queue = nil
			c.mu.Unlock()
			release(left)
			return
		}
		n := min(len(c.queue), maxBatch)
		batch = append(batch[:0], c.queue[:n]...)
		c.queue = append(c.queue[:0], c.queue[n:]...)
		slices = slices[:0]
		for _, pkt := range batch {
			slices = append(slices, pkt.AsSlices()...)
			c.bytes -= pkt.Size()
		}
		if c.bytes < busy/2 {
			c.drained.Broadcast()
		}
		c.mu.Unlock()
		todo := slices // WriteTo consumes what it is called on
		_, err := todo.WriteTo(c.conn)
		release(batch)
		if err != nil {
			c.stop(err)
		}
	}
}

func release(packets []*stack.PacketBuffer) {
	for _, p := range packets {
		p.DecRef()
	}
}

// stop ends transmit, and closes the stream, which ends receive.
func (c *cable) stop(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.filled.Signal()
	c.drained.Broadcast()
	c.mu.Unlock()
	c.conn.Close()
}

// Attach implements stack.LinkEndpoint. It is called before receive.
func (c *cable) Attach(d stack.NetworkDispatcher) { c.dispatcher = d }

// IsAttached implements stack.LinkEndpoint.
func (c *cable) IsAttached() bool { return c.dispatcher != nil }

// MTU implements stack.LinkEndpoint.
func (c *cable) MTU() uint32 { return c.mtu }

// MaxHeaderLength implements stack.LinkEndpoint.
func (c *cable) MaxHeaderLength() uint16 { return lengthSize + header.EthernetMinimumSize }

// LinkAddress implements stack.LinkEndpoint.
func (c *cable) LinkAddress() tcpip.LinkAddress { return c.local }

// Capabilities implements stack.LinkEndpoint: a stream between two processes of one machine changes no bits.
func (c *cable) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// ARPHardwareType implements stack.LinkEndpoint.
func (c *cable) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }

// ParseHeader implements stack.LinkEndpoint: deliver has parsed it.
func (c *cable) ParseHeader(*stack.PacketBuffer) bool { return true }

// SetMTU implements stack.LinkEndpoint; it never changes.
func (c *cable) SetMTU(uint32) {}

// SetLinkAddress implements stack.LinkEndpoint; it never changes.
func (c *cable) SetLinkAddress(tcpip.LinkAddress) {}

// Wait implements stack.LinkEndpoint: whoever calls receive and transmit waits for them.
func (c *cable) Wait() {}

// Close implements stack.LinkEndpoint.
func (c *cable) Close() {}

// SetOnCloseAction implements stack.LinkEndpoint.
func (c *cable) SetOnCloseAction(func()) {}
