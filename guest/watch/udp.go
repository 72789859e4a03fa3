//go:build linux

package watch

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/relay"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

const (
	flowTime = 90 * time.Second // a client that is silent so long is forgotten
	maxFlows = 256
)

// datagrams is a bound UDP socket that answers from the address that was asked.
type datagrams struct {
	conn *net.UDPConn
	v4   *ipv4.PacketConn // one of the two
	v6   *ipv6.PacketConn
}

func newDatagrams(conn *net.UDPConn) (*datagrams, error) {
	d := &datagrams{conn: conn}
	if a, ok := conn.LocalAddr().(*net.UDPAddr); ok && a.IP.To4() != nil {
		d.v4 = ipv4.NewPacketConn(conn)
		return d, d.v4.SetControlMessage(ipv4.FlagDst, true)
	}
	d.v6 = ipv6.NewPacketConn(conn)
	return d, d.v6.SetControlMessage(ipv6.FlagDst, true)
}

// read returns whence a datagram came, and how to answer it.
func (d *datagrams) read(buf []byte) (n int, from netip.AddrPort, answer func([]byte) error, err error) {
	var client net.Addr
	var asked net.IP
	if d.v4 != nil {
		var cm *ipv4.ControlMessage
		if n, cm, client, err = d.v4.ReadFrom(buf); err == nil && cm != nil {
			asked = cm.Dst
		}
		answer = func(b []byte) error {
			_, err := d.v4.WriteTo(b, &ipv4.ControlMessage{Src: asked}, client)
			return err
		}
	} else {
		var cm *ipv6.ControlMessage
		if n, cm, client, err = d.v6.ReadFrom(buf); err == nil && cm != nil {
			asked = cm.Dst
		}
		answer = func(b []byte) error {
			_, err := d.v6.WriteTo(b, &ipv6.ControlMessage{Src: asked}, client)
			return err
		}
	}
	if err != nil {
		return n, from, nil, err
	}
	return n, client.(*net.UDPAddr).AddrPort(), answer, nil
}

// proxyUDP carries each client's datagrams to the address to and the answers back, until ctx ends.
func proxyUDP(ctx context.Context, conn *net.UDPConn, to string) error {
	sock, err := newDatagrams(conn)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	flows := map[netip.AddrPort]net.Conn{}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		conn.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range flows {
			c.Close()
		}
	})()
	open := func(from netip.AddrPort, answer func([]byte) error) net.Conn {
		mu.Lock()
		defer mu.Unlock()
		if c := flows[from]; c != nil || len(flows) >= maxFlows || ctx.Err() != nil {
			return c
		}
		c, err := net.Dial("udp", to)
		if err != nil {
			return nil
		}
		flows[from] = c
		wg.Go(func() {
			_ = relay.Receive(c.(*net.UDPConn), func(b []byte) error {
				_ = c.SetReadDeadline(time.Now().Add(flowTime))
				_ = answer(b) // it is UDP's nature that it may be lost
				return nil
			})
			mu.Lock()
			defer mu.Unlock()
			delete(flows, from)
			c.Close()
		})
		return c
	}
	buf := make([]byte, api.MaxDatagram)
	for {
		n, from, answer, err := sock.read(buf)
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if err != nil {
			continue
		}
		if c := open(from, answer); c != nil {
			_ = c.SetReadDeadline(time.Now().Add(flowTime))
			_, _ = c.Write(buf[:n])
		}
	}
}
