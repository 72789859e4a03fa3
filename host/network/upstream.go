package network

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// upstream are the host's name servers, asked as they are.
type upstream struct {
	servers func() []netip.AddrPort
}

const (
	serverTime = 3 * time.Second // for one name server's answer
	maxServers = 3               // as resolv.conf(5) has it
)

// ask passes q on, with a number of our own, to one server after the other until one answers; the answer has q's number.
func (u *upstream) ask(ctx context.Context, q question) ([]byte, error) {
	err := errors.New("the host has no name servers")
	var last []byte
	query := bytes.Clone(q.raw)
	for _, server := range u.servers() {
		rand.Read(query[:2]) // never fails
		var answer []byte
		var failure error
		if answer, failure = exchange(ctx, server, query, q); failure != nil {
			err = failure
			continue
		}
		binary.BigEndian.PutUint16(answer, q.id)
		if code := dnsmessage.RCode(answer[3] & 15); code != dnsmessage.RCodeServerFailure && code != dnsmessage.RCodeRefused {
			return answer, nil
		}
		last = answer
	}
	if last != nil {
		return last, nil
	}
	return nil, err
}

// exchange asks one server, by datagram first, and by a stream where the answer is too long for one.
func exchange(ctx context.Context, server netip.AddrPort, query []byte, q question) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, serverTime)
	defer cancel()
	answer, err := exchangeBy(ctx, "udp", server, query, q)
	if err != nil {
		return nil, err
	}
	if answer[2]&2 != 0 { // truncated
		if whole, err := exchangeBy(ctx, "tcp", server, query, q); err == nil {
			return whole, nil
		}
	}
	return answer, nil
}

func exchangeBy(ctx context.Context, network string, server netip.AddrPort, query []byte, q question) ([]byte, error) {
	c, err := new(net.Dialer).DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	if network == "tcp" {
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
			return nil, err
		}
		var head [2]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return nil, err
		}
		answer := make([]byte, binary.BigEndian.Uint16(head[:]))
		if _, err := io.ReadFull(c, answer); err != nil {
			return nil, err
		}
		if !answers(answer, query, q) {
			return nil, fmt.Errorf("name server %s answered something else", server)
		}
		return answer, nil
	}
	if _, err := c.Write(query); err != nil {
		return nil, err
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		n, err := c.Read(*buf)
		if err != nil {
			return nil, err
		}
		if answers((*buf)[:n], query, q) {
			return bytes.Clone((*buf)[:n]), nil
		}
	}
}

// answers is whether b answers query, and not one that somebody hopes was asked.
func answers(b, query []byte, q question) bool {
	var p dnsmessage.Parser
	h, err := p.Start(b)
	if err != nil || !h.Response || h.ID != binary.BigEndian.Uint16(query) {
		return false
	}
	got, err := p.Question()
	if errors.Is(err, dnsmessage.ErrSectionDone) { // as some do that cannot answer
		return h.RCode != dnsmessage.RCodeSuccess
	}
	return err == nil && got.Type == q.Type && got.Class == q.Class && strings.EqualFold(got.Name.String(), q.Name.String())
}

// resolvConf reads name servers from a file of resolv.conf(5), anew when it has changed.
type resolvConf struct {
	path string

	mu   sync.Mutex
	read os.FileInfo // when servers was read
	list []netip.AddrPort
}

func (r *resolvConf) servers() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, err := os.Stat(r.path)
	if err == nil && r.read != nil && os.SameFile(now, r.read) && now.ModTime().Equal(r.read.ModTime()) && now.Size() == r.read.Size() {
		return r.list
	}
	f, err := os.Open(r.path)
	if err != nil {
		return r.list // the last that there was
	}
	defer f.Close()
	if r.list, err = parseResolvConf(io.LimitReader(f, 1<<20)); err == nil {
		r.read = now
	}
	return r.list
}

// parseResolvConf reads the name servers; where there is none, it is this machine, as the C library has it.
func parseResolvConf(r io.Reader) ([]netip.AddrPort, error) {
	var list []netip.AddrPort
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || words[0] != "nameserver" || len(list) == maxServers {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil {
			list = append(list, netip.AddrPortFrom(a, 53))
		}
	}
	if len(list) == 0 {
		list = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)}
	}
	return list, lines.Err()
}
