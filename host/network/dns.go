package network

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

const (
	queryTime = 10 * time.Second // for one answer
	streamGap = 10 * time.Second // between two queries on one stream
	// timeToLive is what our answers say of theirs, in seconds. The host's resolver does not tell the true one, and has a
	// cache of its own; a host that changes its network is followed within it.
	timeToLive = 5
	plainSize  = 512  // bytes of an answer by datagram, where the query says nothing (RFC 1035, 4.2.1)
	ednsSize   = 4096 // bytes of a query by datagram that we would take (RFC 6891, 6.2.3)
)

// hostResolver is the part of net.Resolver that answers for the host: by its files, search domains and name servers.
type hostResolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupAddr(ctx context.Context, addr string) ([]string, error)
}

// resolver answers the guest's queries as the host would: addresses and their names by the host's own resolver, all else by
// its name servers as they are. It answers for the names of the virtual network itself, whose zones go no further.
type resolver struct {
	log      *slog.Logger
	addr     addresses
	host     hostResolver
	upstream *upstream
	names    map[string]netip.Addr // ours, lower case, with the dot at the end
	reverse  map[netip.Addr]string
}

// zones hold our names and no others.
var zones = []string{"docker.internal.", "containers.internal."}

func newResolver(a addresses, log *slog.Logger) *resolver {
	return &resolver{
		log: log, addr: a, host: net.DefaultResolver, upstream: &upstream{servers: hostServers()},
		names: map[string]netip.Addr{
			"host.docker.internal.": a.host, "gateway.docker.internal.": a.gateway,
			"host.containers.internal.": a.host, "gateway.containers.internal.": a.gateway,
		},
		reverse: map[netip.Addr]string{a.host: "host.docker.internal.", a.gateway: "gateway.docker.internal."},
	}
}

// question is a query, read as far as the answer depends on it.
type question struct {
	dnsmessage.Question
	raw  []byte
	id   uint16
	rd   bool // recursion desired
	edns bool
	size int // bytes that the answer may have
}

// answer answers one query, which it may change. It returns nil for what is no query.
func (r *resolver) answer(ctx context.Context, query []byte, stream bool) []byte {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	q, rcode, ok := readQuestion(query)
	if !ok {
		return nil
	}
	if stream {
		q.size = 1<<16 - 1
	}
	if rcode != dnsmessage.RCodeSuccess {
		return q.reply(rcode, false)
	}
	return q.fit(r.resolve(ctx, q))
}

func readQuestion(query []byte) (q question, rcode dnsmessage.RCode, ok bool) {
	var p dnsmessage.Parser
	h, err := p.Start(query)
	if err != nil || h.Response {
		return q, 0, false
	}
	q = question{raw: query, id: h.ID, rd: h.RecursionDesired, size: plainSize}
	if h.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented, true
	}
	if q.Question, err = p.Question(); err != nil {
		return q, dnsmessage.RCodeFormatError, true
	}
	if _, err := p.Question(); !errors.Is(err, dnsmessage.ErrSectionDone) {
		return q, dnsmessage.RCodeFormatError, true
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, dnsmessage.RCodeFormatError, true
	}
	for {
		h, err := p.AdditionalHeader()
		if err != nil {
			return q, dnsmessage.RCodeSuccess, true
		}
		if h.Type == dnsmessage.TypeOPT {
			q.edns, q.size = true, max(plainSize, int(h.Class))
		}
		if p.SkipAdditional() != nil {
			return q, dnsmessage.RCodeFormatError, true
		}
	}
}

// resolve finds the answer, of whatever length.
func (r *resolver) resolve(ctx context.Context, q question) []byte {
	name := strings.ToLower(q.Name.String())
	own, isOwn := r.names[name]
	switch {
	case q.Class != dnsmessage.ClassINET:
		return r.pass(ctx, q)
	case isOwn && q.Type == dnsmessage.TypeA:
		return q.reply(dnsmessage.RCodeSuccess, false, addressRecord(own))
	case isOwn:
		return q.reply(dnsmessage.RCodeSuccess, false)
	case inZone(name):
		return q.reply(dnsmessage.RCodeNameError, false)
	case q.Type == dnsmessage.TypeA || q.Type == dnsmessage.TypeAAAA:
		return r.addresses(ctx, q)
	case q.Type == dnsmessage.TypePTR:
		if a, ok := reversed(name); ok {
			return r.pointer(ctx, q, a)
		}
	}
	return r.pass(ctx, q)
}

func inZone(name string) bool {
	for _, z := range zones {
		if name == z || strings.HasSuffix(name, "."+z) {
			return true
		}
	}
	return false
}

// addresses asks the host's resolver. A name that it has addresses of the other family for is one that exists.
func (r *resolver) addresses(ctx context.Context, q question) []byte {
	network, other := "ip4", "ip6"
	if q.Type == dnsmessage.TypeAAAA {
		network, other = other, network
	}
	name := strings.TrimSuffix(q.Name.String(), ".")
	if name == "" {
		return r.pass(ctx, q)
	}
	addrs, err := r.host.LookupNetIP(ctx, network, name)
	if err == nil {
		records := make([]dnsmessage.ResourceBody, len(addrs))
		for i, a := range addrs {
			records[i] = addressRecord(a)
		}
		return q.reply(dnsmessage.RCodeSuccess, false, records...)
	}
	if isNotFound(err) {
		if _, err = r.host.LookupNetIP(ctx, other, name); err == nil {
			return q.reply(dnsmessage.RCodeSuccess, false)
		}
	}
	return r.missing(ctx, q, err)
}

// missing answers where the host's resolver has failed by err. It does not tell a name without addresses from one that does
// not exist; its servers do.
func (r *resolver) missing(ctx context.Context, q question, err error) []byte {
	if !isNotFound(err) {
		return q.reply(dnsmessage.RCodeServerFailure, false)
	}
	name := strings.ToLower(q.Name.String())
	if strings.Count(name, ".") > 1 && !strings.HasSuffix(name, ".local.") {
		if b, err := r.upstream.ask(ctx, q); err == nil {
			return b
		}
	}
	return q.reply(dnsmessage.RCodeNameError, false)
}

func isNotFound(err error) bool {
	var d *net.DNSError
	return errors.As(err, &d) && d.IsNotFound
}

// pointer asks the host's resolver for the names of an address.
func (r *resolver) pointer(ctx context.Context, q question, a netip.Addr) []byte {
	if r.addr.subnet.Contains(a) {
		if name, ok := r.reverse[a]; ok {
			return q.reply(dnsmessage.RCodeSuccess, false, &dnsmessage.PTRResource{PTR: dnsmessage.MustNewName(name)})
		}
		return q.reply(dnsmessage.RCodeNameError, false)
	}
	names, err := r.host.LookupAddr(ctx, a.String())
	if err != nil {
		return r.missing(ctx, q, err)
	}
	var records []dnsmessage.ResourceBody
	for _, n := range names {
		if name, err := dnsmessage.NewName(strings.TrimSuffix(n, ".") + "."); err == nil {
			records = append(records, &dnsmessage.PTRResource{PTR: name})
		}
	}
	return q.reply(dnsmessage.RCodeSuccess, false, records...)
}

// pass asks the host's name servers.
func (r *resolver) pass(ctx context.Context, q question) []byte {
	b, err := r.upstream.ask(ctx, q)
	if err != nil {
		r.log.Debug("pass query on", "type", q.Type, "error", err)
		return q.reply(dnsmessage.RCodeServerFailure, false)
	}
	return b
}

func addressRecord(a netip.Addr) dnsmessage.ResourceBody {
	if a = a.Unmap(); a.Is4() {
		return &dnsmessage.AResource{A: a.As4()}
	}
	return &dnsmessage.AAAAResource{AAAA: a.As16()}
}

// reply makes an answer to q.
func (q question) reply(rcode dnsmessage.RCode, truncated bool, records ...dnsmessage.ResourceBody) []byte {
	m := dnsmessage.Message{Header: dnsmessage.Header{
		ID: q.id, Response: true, RecursionDesired: q.rd, RecursionAvailable: true, RCode: rcode, Truncated: truncated,
	}}
	if q.Name.Length > 0 {
		m.Questions = []dnsmessage.Question{q.Question}
	}
	for _, body := range records {
		h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: timeToLive}
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: body})
	}
	if q.edns {
		var h dnsmessage.ResourceHeader
		h.SetEDNS0(ednsSize, rcode, false)
		m.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	b, err := m.Pack()
	if err != nil && len(records) > 0 {
		return q.reply(dnsmessage.RCodeServerFailure, false)
	}
	return b
}

// fit makes of an answer that is too long one that sends the guest to ask by a stream.
func (q question) fit(b []byte) []byte {
	if len(b) <= q.size {
		return b
	}
	return q.reply(dnsmessage.RCodeSuccess, true)
}

// reversed is the address whose name is name in in-addr.arpa or ip6.arpa; ok is false for any other name.
func reversed(name string) (a netip.Addr, ok bool) {
	if v4, found := strings.CutSuffix(name, ".in-addr.arpa."); found {
		p := strings.Split(v4, ".")
		if len(p) != 4 {
			return a, false
		}
		a, err := netip.ParseAddr(p[3] + "." + p[2] + "." + p[1] + "." + p[0])
		return a, err == nil
	}
	v6, found := strings.CutSuffix(name, ".ip6.arpa.")
	if !found || len(v6) != 63 {
		return a, false
	}
	var b strings.Builder
	for i := 62; i >= 0; i -= 2 {
		if b.WriteByte(v6[i]); i%8 == 0 && i > 0 { // four make a group
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil && strings.Count(v6, ".") == 31
}

// query answers a query that came by datagram from a port of the guest. Where too many are in flight it is lost.
func (s *segment) query(ctx context.Context, port uint16, question []byte) {
	select {
	case s.queries <- struct{}{}:
	default:
		return
	}
	if !s.enter() {
		<-s.queries
		return
	}
	go func() {
		defer s.tasks.Done()
		defer func() { <-s.queries }()
		if b := s.net.names.answer(ctx, question, false); b != nil {
			s.sendUDP(netip.AddrPortFrom(s.net.addr.gateway, 53), port, b)
		}
	}()
}

// queryStream answers the queries of one connection, one after the other, each behind its length as 16 bits (RFC 1035, 4.2.2).
func (s *segment) queryStream(ctx context.Context, g *guestConn) {
	c := gonet.NewTCPConn(&g.queue, g.ep)
	defer c.Close()
	defer context.AfterFunc(ctx, g.ep.Abort)()
	for {
		c.SetDeadline(time.Now().Add(streamGap))
		var head [2]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		question := make([]byte, binary.BigEndian.Uint16(head[:]))
		if _, err := io.ReadFull(c, question); err != nil {
			return
		}
		select {
		case s.queries <- struct{}{}:
		case <-ctx.Done():
			return
		}
		b := s.net.names.answer(ctx, question, true)
		<-s.queries
		if b == nil {
			return
		}
		c.SetDeadline(time.Now().Add(streamGap))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)); err != nil {
			return
		}
	}
}
