package vsock

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/coracle-engine/coracle/vm/vhostuser/vhosttest"
)

func TestHostileGuest(t *testing.T) {
	p := ports{host: hostPort, guest: 3000}
	open := func(g *guest) { g.raw(p, opRequest, nil, nil) }
	tests := []struct {
		name  string
		do    func(g *guest)
		reset bool // the stream is reset; else nothing comes back
	}{
		{"wrong source", func(g *guest) { g.raw(p, opRequest, nil, func(h *header) { h.srcCID = 7 }) }, false},
		{"wrong destination", func(g *guest) { g.raw(p, opRequest, nil, func(h *header) { h.dstCID = 9 }) }, false},
		{"wrong type", func(g *guest) { g.raw(p, opRequest, nil, func(h *header) { h.typ = 2 }) }, false},
		{"length beyond the packet", func(g *guest) {
			g.raw(p, opRW, []byte("x"), func(h *header) { h.len = 2 })
		}, false},
		{"length of 4 GiB", func(g *guest) { g.raw(p, opRW, nil, func(h *header) { h.len = 1<<32 - 1 }) }, false},
		{"reset to nobody", func(g *guest) { g.raw(p, opReset, nil, nil) }, false},
		{"data to nobody", func(g *guest) { g.raw(p, opRW, []byte("x"), nil) }, true},
		{"unknown operation", func(g *guest) { open(g); g.raw(p, 77, nil, nil) }, true},
		{"request twice", func(g *guest) { open(g); open(g) }, true},
		{"response unasked", func(g *guest) { open(g); g.raw(p, opResponse, nil, nil) }, true},
		{"more than its credit", func(g *guest) {
			open(g)
			for range 6 {
				g.raw(p, opRW, make([]byte, maxPayload), nil)
			}
		}, true},
		{"has read what was not sent", func(g *guest) {
			open(g)
			g.raw(p, opCreditUpdate, nil, func(h *header) { h.fwdCnt = 1 })
		}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := newDevice(t)
			listen(t, d, hostPort)
			g := boot(t, d)
			g.serve(echoPort, echoServer)
			g.mute = true
			tt.do(g)
			if tt.reset {
				waitFor(t, "a reset", func() bool { return g.resets(p.guest) > 0 })
			}
			if err := checkEcho(dial(t, d, echoPort), []byte("alive")); err != nil {
				t.Error(err)
			}
			if !tt.reset && g.resets(p.guest) > 0 {
				t.Error("host answered")
			}
			waitFor(t, "streams to end", func() bool { return streams(d) == 0 })
		})
	}
}

// jump offers more chains than a ring has.
func jump(g *guest, q *vhosttest.Queue) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for range 300 {
		q.Offer(0)
	}
	q.Publish()
	q.Kick(true)
}

func TestHostileRings(t *testing.T) {
	tests := map[string]func(g *guest){
		"receive buffer too small": func(g *guest) {
			g.rx.Stop()
			q := g.f.NewQueue(0, 16)
			q.Add(vhosttest.Desc{Addr: g.f.Alloc(44), Len: 44, Flags: vhosttest.Write})
			q.Publish()
			q.Start(0)
			g.raw(ports{1, 1}, opRW, nil, nil)
		},
		"receive index jumps":  func(g *guest) { jump(g, g.rx) },
		"transmit index jumps": func(g *guest) { jump(g, g.tx) },
		"transmit loop": func(g *guest) {
			g.f.Put(g.tx.Desc, 0, vhosttest.Desc{Addr: vhosttest.LowGuest, Len: 1, Flags: vhosttest.Next})
			g.tx.Offer(0)
			g.tx.Publish()
			g.tx.Kick(true)
		},
	}
	for name, break1 := range tests {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t)
			l := listen(t, d, hostPort)
			g := boot(t, d)
			if _, err := g.dial(hostPort); err != nil {
				t.Fatal(err)
			}
			c, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			break1(g)
			if name == "receive index jumps" {
				for i := range uint32(200) { // answers use up the buffers that were seen before
					g.raw(ports{1, i}, opRW, nil, nil)
				}
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Read: %v", err)
			}
		})
	}
}

// A guest that floods without taking answers costs bounded memory, and gets on when it takes them.
func TestStorm(t *testing.T) {
	d := newDevice(t)
	listen(t, d, hostPort)
	g := boot(t, d)
	g.serve(echoPort, echoServer)
	g.starve(true)
	for i := range uint32(3 * softControl) {
		p := ports{host: hostPort, guest: 10000 + i}
		g.raw(p, opRW, nil, nil)
		g.raw(p, opRequest, nil, nil)
		g.raw(p, opReset, nil, nil)
	}
	d.out.mu.Lock()
	n := len(d.out.control)
	d.out.mu.Unlock()
	if n > softControl+2 {
		t.Errorf("%d packets wait", n)
	}
	g.starve(false)
	if err := checkEcho(dial(t, d, echoPort), []byte("alive")); err != nil {
		t.Error(err)
	}
}

func TestTooManyStreams(t *testing.T) {
	d := newDevice(t)
	listen(t, d, hostPort)
	g := boot(t, d)
	g.mute = true
	for i := range uint32(maxConns + 10) {
		g.raw(ports{host: hostPort, guest: 10000 + i}, opRequest, nil, nil)
	}
	last := uint32(10000 + maxConns + 9)
	waitFor(t, "a refusal", func() bool { return g.resets(last) == 1 })
	if n := streams(d); n != maxConns {
		t.Errorf("%d streams", n)
	}
	if _, err := d.Dial(context.Background(), 1); err == nil {
		t.Error("Dial beyond the limit succeeded")
	}
}
