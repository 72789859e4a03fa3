package forward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/net/nettest"
)

// guest is the other end of a Forwarder's streams.
type guest struct {
	serve func(guestapi.Connect, *end)
	dir   string

	mu   sync.Mutex
	seen []guestapi.Connect
}

// end is one end of a stream that knows, as vsock does, whether it was broken off.
type end struct {
	*net.UnixConn
	mine, theirs *half
}

type half struct {
	mu            sync.Mutex
	ended, closed bool
}

func (e *end) CloseWrite() error {
	e.mine.mu.Lock()
	e.mine.ended = true
	e.mine.mu.Unlock()
	return e.UnixConn.CloseWrite()
}

func (e *end) Close() error {
	e.theirs.mu.Lock()
	finished := e.theirs.ended
	e.theirs.mu.Unlock()
	e.mine.mu.Lock()
	e.mine.closed = e.mine.closed || !(e.mine.ended && finished)
	e.mine.mu.Unlock()
	return e.UnixConn.Close()
}

// Reset is whether the peer broke off.
func (e *end) Reset() bool {
	e.theirs.mu.Lock()
	defer e.theirs.mu.Unlock()
	return e.theirs.closed
}

func (g *guest) dial(ctx context.Context, port uint32) (net.Conn, error) {
	if port != guestapi.PortConnect {
		return nil, errors.New("wrong port")
	}
	l, err := net.Listen("unix", g.dir+"/"+time.Now().Format("150405.000000000"))
	if err != nil {
		return nil, err
	}
	defer l.Close()
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", l.Addr().String())
	if err != nil {
		return nil, err
	}
	s, err := l.Accept()
	if err != nil {
		return nil, err
	}
	a, b := new(half), new(half)
	host, mine := &end{c.(*net.UnixConn), a, b}, &end{s.(*net.UnixConn), b, a}
	go func() {
		head, err := guestapi.ReadConnect(mine)
		if err != nil {
			mine.Close()
			return
		}
		g.mu.Lock()
		g.seen = append(g.seen, head)
		g.mu.Unlock()
		g.serve(head, mine)
	}()
	return host, nil
}

// newForwarder makes one whose streams serve serves.
func newForwarder(t testing.TB, serve func(guestapi.Connect, *end)) (*Forwarder, *guest) {
	t.Helper()
	dir, err := os.MkdirTemp("", "fwd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	g := &guest{serve: serve, dir: dir}
	f, err := New(Config{Log: slog.New(slog.DiscardHandler), Dial: g.dial, Address: "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	return f, g
}

// freePort is a port that nothing has in either family.
func freePort(t testing.TB) uint16 {
	t.Helper()
	for range 50 {
		l, err := net.Listen("tcp", "[::]:0")
		if err != nil {
			if l, err = net.Listen("tcp4", "0.0.0.0:0"); err != nil {
				t.Fatal(err)
			}
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		u, err := net.ListenPacket("udp", net.JoinHostPort("", itoa(uint16(port))))
		if err == nil {
			u.Close()
			return uint16(port)
		}
	}
	t.Fatal("no free port")
	return 0
}

func itoa(port uint16) string {
	return netip.AddrPortFrom(netip.IPv4Unspecified(), port).String()[len("0.0.0.0:"):]
}

// open publishes and fails the test where that fails.
func open(t testing.TB, f *Forwarder, list ...guestapi.Forward) {
	t.Helper()
	for i, p := range f.Set(t.Context(), list) {
		if p.ID != list[i].ID || p.Error != "" {
			t.Fatalf("publication of %+v: %+v", list[i], p)
		}
	}
}

func tcpForward(id uint64, address string, port uint16) guestapi.Forward {
	return guestapi.Forward{ID: id, Protocol: "tcp", Address: address, Port: port, To: "172.17.0.2:80"}
}

func needIPv6(t *testing.T) {
	t.Helper()
	if !nettest.SupportsIPv6() {
		t.Skip("this host has no IPv6: enable it (sysctl net.ipv6.conf.all.disable_ipv6=0)")
	}
}

func addresses(f *Forwarder) []string {
	var out []string
	for _, p := range f.List() {
		out = append(out, p.Protocol+" "+p.Address.Addr().String())
	}
	slices.Sort(out)
	return out
}
