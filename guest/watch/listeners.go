//go:build linux

package watch

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/sys/unix"
)

// Listeners publishes what containers of the host's network listen on: they have no port of dockerd's. It is told by the
// kernel that some socket began or ceased to listen (trace.go), and then looks which there are in the guest's own network.
// Sockets of the guest's own programs are not published: they are known by their control group. A UDP socket counts as
// listening when it is bound and not connected, and its port is not from the range that the kernel gives clients.
type Listeners struct {
	log     *slog.Logger
	ports   *Ports
	tracefs string
	own     []string // control groups of the guest's programs; of all but the first, those below as well
}

// NewListeners makes a Listeners that adds to ports.
func NewListeners(log *slog.Logger, ports *Ports) *Listeners {
	return &Listeners{
		log: log, ports: ports, tracefs: "/sys/kernel/tracing", own: []string{"/sys/fs/cgroup", "/sys/fs/cgroup/engine"},
	}
}

const (
	settleTime = 20 * time.Millisecond  // from the kernel's word to a look: it comes a little before the fact, and seldom alone
	secondTime = 300 * time.Millisecond // to a second look, for a fact that took its time
)

// Run publishes until ctx ends. Where the kernel tells nothing, what listens now is published, and the log says so.
func (l *Listeners) Run(ctx context.Context) {
	kicks := make(chan struct{}, 1)
	kick := func() {
		select {
		case kicks <- struct{}{}:
		default:
		}
	}
	kick()
	var wg sync.WaitGroup
	defer wg.Wait()
	if t, err := openTrace(l.tracefs); err != nil {
		l.log.Warn("ports of containers in the machine's own network are seen at its start alone", "err", err)
	} else {
		if t.deaf != nil {
			l.log.Warn("UDP ports of containers in the machine's own network are seen when a TCP port opens or closes", "err", t.deaf)
		}
		wg.Go(func() { t.run(ctx, kick) })
	}
	var known portSet
	if d, err := listenDestroyed(); err != nil {
		l.log.Warn("UDP ports of containers in the machine's own network stay open on the host until another opens", "err", err)
	} else {
		wg.Go(func() { d.run(ctx, &known, kick) })
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-kicks:
		}
		for _, pause := range []time.Duration{settleTime, secondTime} {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			list, err := l.look()
			if err != nil {
				l.log.Warn("look for ports of containers in the machine's own network", "err", err)
				break
			}
			known.set(list)
			l.ports.setListeners(list)
		}
	}
}

// portSet are the UDP ports that are published as listeners.
type portSet struct {
	mu    sync.Mutex
	ports map[uint16]bool
}

func (s *portSet) set(list []api.Forward) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ports = map[uint16]bool{}
	for _, f := range list {
		if f.Protocol == "udp" {
			s.ports[f.Port] = true
		}
	}
}

func (s *portSet) has(port uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ports[port]
}

// look is what listens now.
func (l *Listeners) look() ([]api.Forward, error) {
	own := l.groups()
	low, high := clientPorts()
	n, err := dialNetlink(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	defer n.close()
	var out []api.Forward
	for _, q := range []struct {
		name            string
		protocol, state byte
	}{{"tcp", unix.IPPROTO_TCP, unix.BPF_TCP_LISTEN}, {"udp", unix.IPPROTO_UDP, unix.BPF_TCP_CLOSE}} {
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			err := n.call(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, diagRequest(family, q.protocol, q.state), func(b []byte) error {
				s, ok := parseSocket(b)
				if !ok || own[s.group] || q.name == "udp" && s.at.Port() >= low && s.at.Port() <= high {
					return nil
				}
				if f, ok := s.forward(q.name); ok && !slices.Contains(out, f) {
					out = append(out, f)
				}
				return nil
			})
			if err != nil && !errors.Is(err, unix.ENOENT) { // no such kind of socket was ever made
				return nil, err
			}
		}
	}
	return out, nil
}

// groups are the numbers of the guest's own control groups, as sockets bear them. A socket whose group the kernel does not
// tell bears 0.
func (l *Listeners) groups() map[uint64]bool {
	out := map[uint64]bool{0: true}
	add := func(path string) {
		if st, err := os.Stat(path); err == nil {
			out[st.Sys().(*syscall.Stat_t).Ino] = true
		}
	}
	for i, root := range l.own {
		if add(root); i == 0 {
			continue
		}
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				add(path)
			}
			return nil
		})
	}
	return out
}

// clientPorts is the range of ports that the kernel gives to who asks for none in particular.
func clientPorts() (low, high uint16) {
	low, high = 32768, 60999
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if f := strings.Fields(string(b)); err == nil && len(f) == 2 {
		if n, err := strconv.ParseUint(f[0], 10, 16); err == nil {
			low = uint16(n)
		}
		if n, err := strconv.ParseUint(f[1], 10, 16); err == nil {
			high = uint16(n)
		}
	}
	return low, high
}

// listening is a socket as the kernel tells of it.
type listening struct {
	at    netip.AddrPort
	only6 bool   // it is :: and does not take IPv4
	group uint64 // the control group of who made it
}

// What of linux/inet_diag.h is not in x/sys.
const (
	diagRequestSize = 56 // struct inet_diag_req_v2
	diagSize        = 72 // struct inet_diag_msg
	diagOnly6       = 11 // INET_DIAG_SKV6ONLY
	diagGroup       = 21 // INET_DIAG_CGROUP_ID
)

// diagRequest asks for all sockets of a family and protocol that are in one state (man 7 sock_diag).
func diagRequest(family, protocol, state byte) []byte {
	b := make([]byte, diagRequestSize)
	b[0], b[1] = family, protocol
	binary.NativeEndian.PutUint32(b[4:], 1<<state)
	return b
}

func parseSocket(b []byte) (s listening, ok bool) {
	if len(b) < diagSize {
		return s, false
	}
	a := b[8:24]
	if b[0] == unix.AF_INET {
		a = a[:4]
	}
	addr, _ := netip.AddrFromSlice(a)
	s.at = netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[4:]))
	attributes(b[diagSize:], func(kind uint16, value []byte) {
		switch {
		case kind == diagOnly6 && len(value) > 0:
			s.only6 = value[0] != 0
		case kind == diagGroup && len(value) == 8:
			s.group = binary.NativeEndian.Uint64(value)
		}
	})
	return s, s.at.Port() != 0
}

// forward is how a socket is published: one for all addresses follows the host's setting, one of a loopback is the host's
// loopback's. What listens at one link alone is of no use to the host but for the link to the outside, which is not told apart
// here: dockerd's own links are the others, and nobody who wants to be reached listens there.
func (s listening) forward(protocol string) (api.Forward, bool) {
	f := api.Forward{Protocol: protocol, Port: s.at.Port(), To: s.at.String()}
	a := s.at.Addr()
	switch {
	case a == netip.IPv6Unspecified() && !s.only6:
		f.To = netip.AddrPortFrom(netip.IPv4Unspecified(), s.at.Port()).String()
	case a.IsUnspecified():
		f.Address = a.String()
	case a.Is4() && a.IsLoopback():
		f.Address = "127.0.0.1"
	case a.IsLoopback():
		f.Address = a.String()
	default:
		return f, false
	}
	return f, true
}
