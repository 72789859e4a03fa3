package vmtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// The network that a Cable leads to. It is the one that QEMU brings itself, so that a guest need not ask.
const (
	CableHost  = "10.0.2.2" // answers ARP, and sends back every datagram on any port
	CableGuest = "10.0.2.15"
	EchoPort   = 7
	CableMTU   = 65520
)

// Cable is the other end of a guest's network card, with one host on it that answers ARP (RFC 826) and UDP. Frames is for
// vm.Network.
type Cable struct {
	calls   atomic.Int32
	running atomic.Int32
	mu      sync.Mutex
	longest int // frame
}

var cableMAC = []byte{2, 0, 0, 0, 0, 1}

const (
	etherSize   = 14
	typeIPv4    = 0x0800
	typeARP     = 0x0806
	arpSize     = 28
	ipSize      = 20
	udpSize     = 8
	protocolUDP = 17
)

// Frames serves the cable until it is cut or ctx ends.
func (c *Cable) Frames(ctx context.Context, cable net.Conn) error {
	c.calls.Add(1)
	c.running.Add(1)
	defer c.running.Add(-1)
	defer context.AfterFunc(ctx, func() { cable.Close() })()
	r := bufio.NewReader(cable)
	for {
		frame, err := readFrame(r)
		if err != nil {
			if ctx.Err() != nil || err == io.EOF {
				return nil
			}
			return err
		}
		c.mu.Lock()
		c.longest = max(c.longest, len(frame))
		c.mu.Unlock()
		if !reflect(frame) {
			continue
		}
		if err := writeFrame(cable, frame); err != nil {
			return err
		}
	}
}

func readFrame(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > 1<<17 {
		return nil, fmt.Errorf("frame of %d bytes", n)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, err
}

func writeFrame(w io.Writer, frame []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	return err
}

// reflect makes of frame the host's answer to it, and returns false where it has none. To swap source and destination leaves
// the checksums right.
func reflect(frame []byte) bool {
	if len(frame) < etherSize {
		return false
	}
	host := net.ParseIP(CableHost).To4()
	body := frame[etherSize:]
	switch binary.BigEndian.Uint16(frame[12:]) {
	case typeARP:
		if len(body) < arpSize || body[7] != 1 || !bytes.Equal(body[24:28], host) { // a request for us
			return false
		}
		body[7] = 2
		copy(body[18:28], body[8:18])
		copy(body[8:], cableMAC)
		copy(body[14:], host)
	case typeIPv4:
		if len(body) < ipSize+udpSize || body[0] != 0x45 || body[9] != protocolUDP || !bytes.Equal(body[16:20], host) {
			return false
		}
		swap(body[12:16], body[16:20])
		swap(body[20:22], body[22:24])
	default:
		return false
	}
	copy(frame, frame[6:12])
	copy(frame[6:], cableMAC)
	return true
}

func swap(a, b []byte) {
	for i := range a {
		a[i], b[i] = b[i], a[i]
	}
}

// Exchange is a fake guest's: it has a network of one datagram at a time.
func (g *Guest) Exchange(datagram []byte) ([]byte, error) {
	if g.m.cable == nil {
		return nil, fmt.Errorf("the machine has no cable")
	}
	size := udpSize + len(datagram)
	f := append(append(bytes.Clone(cableMAC), 2, 0, 0, 0, 0, 2), typeIPv4>>8, typeIPv4&0xff)
	f = append(f, 0x45, 0, byte((ipSize+size)>>8), byte(ipSize+size), 0, 0, 0, 0, 64, protocolUDP, 0, 0)
	f = append(append(f, net.ParseIP(CableGuest).To4()...), net.ParseIP(CableHost).To4()...)
	f = append(f, 0x80, 0, 0, EchoPort, byte(size>>8), byte(size), 0, 0)
	if err := writeFrame(g.m.cable, append(f, datagram...)); err != nil {
		return nil, err
	}
	b, err := readFrame(g.m.cable)
	if err != nil {
		return nil, err
	}
	return b[min(len(b), etherSize+ipSize+udpSize):], nil
}
