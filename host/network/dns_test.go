package network

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

// fakeHost is a host's resolver with a few names.
type fakeHost struct {
	names map[string][]netip.Addr
	fails map[string]error
}

var errNoName = &net.DNSError{Err: "no such host", IsNotFound: true}

func (f fakeHost) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	if err := f.fails[host]; err != nil {
		return nil, err
	}
	var out []netip.Addr
	for _, a := range f.names[host] {
		if a.Is4() == (network == "ip4") {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return nil, errNoName
	}
	return out, nil
}

func (f fakeHost) LookupAddr(_ context.Context, addr string) ([]string, error) {
	for name, addrs := range f.names {
		for _, a := range addrs {
			if a.String() == addr {
				return []string{name + "."}, nil
			}
		}
	}
	return nil, errNoName
}

// fakeServer is a name server on the loopback: answer makes the answer to a query.
func fakeServer(t testing.TB, answer func(q dnsmessage.Message, network string) *dnsmessage.Message) netip.AddrPort {
	t.Helper()
	var udp *net.UDPConn
	var tcp net.Listener
	for udp == nil { // both have the same port
		var err error
		if tcp, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if udp, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(tcp.Addr().String()))); err != nil {
			udp = nil
			tcp.Close()
		}
	}
	at := netip.MustParseAddrPort(tcp.Addr().String())
	respond := func(b []byte, network string) []byte {
		var q dnsmessage.Message
		if err := q.Unpack(b); err != nil {
			t.Errorf("name server got %x: %v", b, err)
			return nil
		}
		a := answer(q, network)
		if a == nil {
			return nil
		}
		a.ID, a.Response, a.Questions = q.ID, true, q.Questions
		out, err := a.Pack()
		if err != nil {
			t.Error(err)
		}
		return out
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 65535)
		for {
			n, from, err := udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if b := respond(buf[:n], "udp"); b != nil {
				udp.WriteToUDPAddrPort(b, from)
			}
		}
	})
	serving.Go(func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			var head [2]byte
			io.ReadFull(c, head[:])
			b := make([]byte, binary.BigEndian.Uint16(head[:]))
			io.ReadFull(c, b)
			if b = respond(b, "tcp"); b != nil {
				c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
			}
			c.Close()
		}
	})
	t.Cleanup(func() {
		udp.Close()
		tcp.Close()
		serving.Wait()
	})
	return at
}

func ask(t testing.TB, name string, kind dnsmessage.Type, edns int) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 0x1234, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}}}
	if edns > 0 {
		var h dnsmessage.ResourceHeader
		h.SetEDNS0(edns, 0, false)
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tell reads an answer as words: its code, then its records; "truncated" where it is.
func tell(t testing.TB, b []byte) string {
	t.Helper()
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		t.Fatalf("answer %x: %v", b, err)
	}
	if m.ID != 0x1234 || !m.Response || len(m.Questions) > 1 {
		t.Errorf("answer has header %+v", m.Header)
	}
	words := []string{strings.TrimPrefix(m.RCode.String(), "RCode")}
	if m.Truncated {
		words = append(words, "truncated")
	}
	for _, a := range m.Answers {
		switch body := a.Body.(type) {
		case *dnsmessage.AResource:
			words = append(words, netip.AddrFrom4(body.A).String())
		case *dnsmessage.AAAAResource:
			words = append(words, netip.AddrFrom16(body.AAAA).String())
		case *dnsmessage.PTRResource:
			words = append(words, body.PTR.String())
		case *dnsmessage.TXTResource:
			words = append(words, strings.Join(body.TXT, "")[:min(20, len(strings.Join(body.TXT, "")))])
		default:
			words = append(words, a.Header.Type.String())
		}
	}
	return strings.Join(words, " ")
}

func newTestResolver(t testing.TB) *resolver {
	r := newResolver(newAddresses(DefaultSubnet), nil)
	r.log = discard
	r.host = fakeHost{
		names: map[string][]netip.Addr{
			"both.example": {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
			"four.example": {netip.MustParseAddr("192.0.2.4")},
			"printer":      {netip.MustParseAddr("10.1.2.3")},
		},
		fails: map[string]error{"slow.example": &net.DNSError{Err: "timeout", IsTimeout: true}},
	}
	server := fakeServer(t, func(q dnsmessage.Message, network string) *dnsmessage.Message {
		name, kind := q.Questions[0].Name.String(), q.Questions[0].Type
		h := dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Type: kind, Class: dnsmessage.ClassINET, TTL: 77}
		switch {
		case name == "mail.example." && kind == dnsmessage.TypeTXT:
			return &dnsmessage.Message{Answers: []dnsmessage.Resource{{Header: h, Body: &dnsmessage.TXTResource{TXT: []string{"v=1"}}}}}
		case name == "mail.example.":
			return &dnsmessage.Message{} // it is there, without such a record
		case name == "long.example." && network == "udp" && len(q.Additionals) == 0:
			return &dnsmessage.Message{Header: dnsmessage.Header{Truncated: true}}
		case name == "long.example.":
			long := &dnsmessage.TXTResource{}
			for range 10 {
				long.TXT = append(long.TXT, strings.Repeat("long", 60))
			}
			return &dnsmessage.Message{Answers: []dnsmessage.Resource{{Header: h, Body: long}}}
		case name == "broken.example.":
			return &dnsmessage.Message{Header: dnsmessage.Header{RCode: dnsmessage.RCodeServerFailure}}
		}
		return &dnsmessage.Message{Header: dnsmessage.Header{RCode: dnsmessage.RCodeNameError}}
	})
	r.upstream.servers = func() []netip.AddrPort { return []netip.AddrPort{server} }
	return r
}

func TestAnswers(t *testing.T) {
	r := newTestResolver(t)
	for _, c := range []struct {
		name string
		kind dnsmessage.Type
		want string
	}{
		{"host.docker.internal.", dnsmessage.TypeA, "Success 192.168.65.254"},
		{"HOST.docker.Internal.", dnsmessage.TypeA, "Success 192.168.65.254"},
		{"host.docker.internal.", dnsmessage.TypeAAAA, "Success"},
		{"host.docker.internal.", dnsmessage.TypeMX, "Success"},
		{"gateway.docker.internal.", dnsmessage.TypeA, "Success 192.168.65.1"},
		{"host.containers.internal.", dnsmessage.TypeA, "Success 192.168.65.254"},
		{"other.docker.internal.", dnsmessage.TypeA, "NameError"},
		{"254.65.168.192.in-addr.arpa.", dnsmessage.TypePTR, "Success host.docker.internal."},
		{"1.65.168.192.in-addr.arpa.", dnsmessage.TypePTR, "Success gateway.docker.internal."},
		{"9.65.168.192.in-addr.arpa.", dnsmessage.TypePTR, "NameError"},
		{"both.example.", dnsmessage.TypeA, "Success 192.0.2.1"},
		{"both.example.", dnsmessage.TypeAAAA, "Success 2001:db8::1"},
		{"four.example.", dnsmessage.TypeAAAA, "Success"},    // it is there
		{"printer.", dnsmessage.TypeA, "Success 10.1.2.3"},   // by the host's search domain
		{"none.example.", dnsmessage.TypeA, "NameError"},     // the name server knows
		{"mail.example.", dnsmessage.TypeA, "Success"},       // the same: it has a TXT
		{"slow.example.", dnsmessage.TypeA, "ServerFailure"}, // not the same as a name that is not
		{"fridge.local.", dnsmessage.TypeA, "NameError"},     // never passed on
		{"nobody.", dnsmessage.TypeAAAA, "NameError"},        // nor this
		{"4.2.0.192.in-addr.arpa.", dnsmessage.TypePTR, "Success four.example."},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.", dnsmessage.TypePTR, "Success both.example."},
		{"9.9.9.9.in-addr.arpa.", dnsmessage.TypePTR, "NameError"},
		{"b._dns-sd._udp.9.in-addr.arpa.", dnsmessage.TypePTR, "NameError"},
		{"mail.example.", dnsmessage.TypeTXT, "Success v=1"},
		{"broken.example.", dnsmessage.TypeTXT, "ServerFailure"},
		{"none.example.", dnsmessage.TypeSRV, "NameError"},
	} {
		t.Run(c.name+c.kind.String(), func(t *testing.T) {
			for _, stream := range []bool{false, true} {
				if got := tell(t, r.answer(context.Background(), ask(t, c.name, c.kind, 0), stream)); got != c.want {
					t.Errorf("stream %v: %s, want %s", stream, got, c.want)
				}
			}
		})
	}
}

func TestAnswerSizes(t *testing.T) {
	r := newTestResolver(t)
	for name, c := range map[string]struct {
		edns   int
		stream bool
		want   string
	}{
		"plain":     {0, false, "Success truncated"},
		"small":     {1232, false, "Success truncated"},
		"large":     {4096, false, "Success " + strings.Repeat("long", 5)},
		"by stream": {0, true, "Success " + strings.Repeat("long", 5)},
	} {
		t.Run(name, func(t *testing.T) {
			b := r.answer(context.Background(), ask(t, "long.example.", dnsmessage.TypeTXT, c.edns), c.stream)
			if got := tell(t, b); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestServersInTurn(t *testing.T) {
	r := newTestResolver(t)
	good := r.upstream.servers()[0]
	bad := fakeServer(t, func(dnsmessage.Message, string) *dnsmessage.Message {
		return &dnsmessage.Message{Header: dnsmessage.Header{RCode: dnsmessage.RCodeRefused}}
	})
	closed := netip.MustParseAddrPort("127.0.0.1:1")
	for name, c := range map[string]struct {
		servers []netip.AddrPort
		want    string
	}{
		"none":         {nil, "ServerFailure"},
		"closed":       {[]netip.AddrPort{closed}, "ServerFailure"},
		"second":       {[]netip.AddrPort{closed, bad, good}, "Success v=1"},
		"all refuse":   {[]netip.AddrPort{bad, bad}, "Refused"},
		"refuse, dead": {[]netip.AddrPort{bad, closed}, "Refused"},
	} {
		t.Run(name, func(t *testing.T) {
			r.upstream.servers = func() []netip.AddrPort { return c.servers }
			if got := tell(t, r.answer(context.Background(), ask(t, "mail.example.", dnsmessage.TypeTXT, 0), false)); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// An answer that was not asked for is not taken, whoever sends it.
func TestForgedAnswers(t *testing.T) {
	good := ask(t, "a.example.", dnsmessage.TypeTXT, 0)
	q, _, _ := readQuestion(good)
	answer := func(change func(m *dnsmessage.Message)) []byte {
		var m dnsmessage.Message
		m.Unpack(good)
		m.Response = true
		change(&m)
		b, _ := m.Pack()
		return b
	}
	for name, c := range map[string]struct {
		b    []byte
		want bool
	}{
		"good":      {answer(func(*dnsmessage.Message) {}), true},
		"case":      {answer(func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("A.EXAMPLE.") }), true},
		"number":    {answer(func(m *dnsmessage.Message) { m.ID++ }), false},
		"query":     {answer(func(m *dnsmessage.Message) { m.Response = false }), false},
		"name":      {answer(func(m *dnsmessage.Message) { m.Questions[0].Name = dnsmessage.MustNewName("b.example.") }), false},
		"type":      {answer(func(m *dnsmessage.Message) { m.Questions[0].Type = dnsmessage.TypeA }), false},
		"no name":   {answer(func(m *dnsmessage.Message) { m.Questions = nil }), false},
		"failure":   {answer(func(m *dnsmessage.Message) { m.Questions, m.RCode = nil, dnsmessage.RCodeFormatError }), true},
		"cut short": {answer(func(*dnsmessage.Message) {})[:11], false},
	} {
		if got := answers(c.b, good, q); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestBadQueries(t *testing.T) {
	r := newTestResolver(t)
	good := ask(t, "four.example.", dnsmessage.TypeA, 0)
	two := append([]byte{}, good...)
	two[5] = 2
	update := append([]byte{}, good...)
	update[2] = 5 << 3
	for name, c := range map[string]struct {
		query []byte
		want  string
	}{
		"cut short":     {good[:20], "FormatError"},
		"two questions": {append(two, good[12:]...), "FormatError"},
		"update":        {update, "NotImplemented"},
	} {
		if got := tell(t, r.answer(context.Background(), c.query, false)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	response := append([]byte{}, good...)
	response[2] |= 0x80
	for name, query := range map[string][]byte{"nothing": nil, "an answer": response} {
		if b := r.answer(context.Background(), query, false); b != nil {
			t.Errorf("%s was answered", name)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	r := newResolver(newAddresses(DefaultSubnet), discard)
	r.host = fakeHost{names: map[string][]netip.Addr{"a.example": {netip.MustParseAddr("192.0.2.1")}}}
	r.upstream.servers = func() []netip.AddrPort { return nil }
	f.Add(ask(f, "a.example.", dnsmessage.TypeA, 1232))
	f.Add(ask(f, "1.65.168.192.in-addr.arpa.", dnsmessage.TypePTR, 0))
	f.Add(ask(f, "x.docker.internal.", dnsmessage.TypeTXT, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := r.answer(context.Background(), b, false)
		if got == nil {
			return
		}
		var p dnsmessage.Parser
		if h, err := p.Start(got); err != nil || !h.Response || h.ID != binary.BigEndian.Uint16(b) {
			t.Fatalf("answer %x to %x: %v", got, b, err)
		}
	})
}

func FuzzReversed(f *testing.F) {
	f.Add("4.2.0.192.in-addr.arpa.")
	f.Add("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.")
	f.Fuzz(func(t *testing.T, name string) {
		if a, ok := reversed(name); ok && !a.IsValid() {
			t.Fatalf("%q is %v", name, a)
		}
	})
}

func TestResolvConf(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+"~", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+"~", path); err != nil {
			t.Fatal(err)
		}
	}
	r := &resolvConf{path: path}
	if got := r.servers(); got != nil {
		t.Errorf("without a file: %v", got)
	}
	at := func(list ...string) (out []netip.AddrPort) {
		for _, s := range list {
			out = append(out, netip.AddrPortFrom(netip.MustParseAddr(s), 53))
		}
		return out
	}
	for _, c := range []struct {
		text string
		want []netip.AddrPort
	}{
		{"# by hand\nsearch corp.example\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\noptions edns0\n", at("192.0.2.53", "fe80::1%eth0")},
		{"nameserver 192.0.2.54 # new\r\n", at("192.0.2.54")},
		{"", at("127.0.0.1")},
		{"nameserver\nnameserver x\n;nameserver 1.1.1.1\n", at("127.0.0.1")},
		{"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n", at("192.0.2.1", "192.0.2.2", "192.0.2.3")},
	} {
		write(c.text)
		if diff := cmp.Diff(c.want, r.servers(), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("%q: %s", c.text, diff)
		}
	}
	os.Remove(path)
	if got := r.servers(); len(got) != 3 {
		t.Errorf("the file is gone: %v, want what it said last", got)
	}
}

// TestDNSByGuest asks through the cable, by both protocols, with a resolver that knows nothing of ours.
func TestDNSByGuest(t *testing.T) {
	g := newGuest(t, Config{})
	r := newTestResolver(t)
	g.net.names.host, g.net.names.upstream = r.host, r.upstream
	client := &net.Resolver{PreferGo: true, StrictErrors: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		at := netip.AddrPortFrom(g.net.addr.gateway, 53)
		if network == "tcp" {
			return g.dial(at)
		}
		return g.dialUDP(at), nil
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if got, err := client.LookupNetIP(ctx, "ip4", "host.docker.internal."); err != nil || len(got) != 1 || got[0].Unmap() != g.net.addr.host {
		t.Errorf("host.docker.internal is %v, %v", got, err)
	}
	if got, err := client.LookupTXT(ctx, "long.example."); err != nil || len(got) != 1 || len(got[0]) != 2400 {
		t.Errorf("long answer, by stream: %d strings, %v", len(got), err)
	}
	var d *net.DNSError
	if _, err := client.LookupNetIP(ctx, "ip", "none.example."); !errors.As(err, &d) || !d.IsNotFound {
		t.Errorf("name that is not: %v", err)
	}
	if _, err := client.LookupNetIP(ctx, "ip", "slow.example."); !errors.As(err, &d) || d.IsNotFound {
		t.Errorf("name that cannot be found out: %v", err)
	}
}
