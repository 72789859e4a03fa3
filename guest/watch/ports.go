//go:build linux

// Package watch knows what of this guest is to be open on the host, and serves what comes in from there. Ports is the set of
// forwards: those that dockerd publishes, each held by a docker-proxy program of ours (Proxy) that waits until the host has
// opened its port, and those that containers of the host's network listen on (Listeners). Connections is the guest's end of
// each connection to them, which it makes come from its client's own address where it can. guest/agent tells the host of the
// set, hands over what the host answers, and brings the streams; host/forward is the other side.
package watch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
)

// maxForwards bounds the set: a line of events has room for it. hostTime is how long the host may take to open a port; dockerd
// gives a proxy 16 s.
const (
	maxForwards = 4096
	hostTime    = 14 * time.Second
)

// Ports is the set of forwards. Its methods may be called from several goroutines.
type Ports struct {
	log *slog.Logger

	mu     sync.Mutex // held while emit runs, so that sets come in order
	emit   func([]api.Forward)
	next   uint64
	held   map[uint64]*hold
	failed map[api.Forward]string // what the log has of listeners that the host could not open; their ID is 0
}

// hold is one forward in the set.
type hold struct {
	forward  api.Forward
	listener bool          // held by the watcher of sockets, not by a proxy
	outcome  chan struct{} // closed when the host has answered
	err      string
}

// NewPorts makes an empty set. emit is called with the whole set after each change, one call at a time; it must not block.
func NewPorts(log *slog.Logger, emit func([]api.Forward)) *Ports {
	return &Ports{log: log, emit: emit, held: map[uint64]*hold{}, failed: map[api.Forward]string{}}
}

// Publish adds f to the set and waits until the host has opened it, bounded by ctx and hostTime. The forward stays until
// release is called, which may be done twice; after an error it is gone already.
func (p *Ports) Publish(ctx context.Context, f api.Forward) (release func(), err error) {
	p.mu.Lock()
	if len(p.held) >= maxForwards {
		p.mu.Unlock()
		return nil, fmt.Errorf("a machine publishes at most %d ports", maxForwards)
	}
	h := p.add(f, false)
	p.tell()
	p.mu.Unlock()
	release = func() { p.remove(h.forward.ID) }

	limit := time.NewTimer(hostTime)
	defer limit.Stop()
	select {
	case <-h.outcome:
		if h.err != "" {
			err = errors.New(h.err)
		}
	case <-limit.C:
		err = fmt.Errorf("the host did not open port %d/%s within %v", f.Port, f.Protocol, hostTime)
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// add is called with mu held.
func (p *Ports) add(f api.Forward, listener bool) *hold {
	p.next++
	f.ID = p.next
	h := &hold{forward: f, listener: listener, outcome: make(chan struct{})}
	p.held[f.ID] = h
	return h
}

func (p *Ports) remove(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.held[id]; ok {
		delete(p.held, id)
		p.tell()
	}
}

// tell is called with mu held.
func (p *Ports) tell() { p.emit(p.list()) }

func (p *Ports) list() []api.Forward {
	out := make([]api.Forward, 0, len(p.held))
	for _, h := range p.held {
		out = append(out, h.forward)
	}
	slices.SortFunc(out, func(a, b api.Forward) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// List is the set.
func (p *Ports) List() []api.Forward {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.list()
}

// Published implements api.Publisher: the host's answer to a set. What is no longer in the set is passed over.
func (p *Ports) Published(list []api.Publication) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range list {
		h := p.held[o.ID]
		if h == nil {
			continue
		}
		if h.listener {
			p.report(h.forward, o.Error)
			continue
		}
		select {
		case <-h.outcome: // only the first answer counts: dockerd has been told
			if o.Error != h.err {
				p.log.Warn("a published port changed on the host", "port", h.forward.Port, "protocol", h.forward.Protocol, "err", o.Error)
			}
		default:
			h.err = o.Error
			close(h.outcome)
		}
	}
}

// report logs what became of a listener's port, once: nobody waits for it.
func (p *Ports) report(f api.Forward, text string) {
	f.ID = 0
	if p.failed[f] == text {
		return
	}
	delete(p.failed, f)
	if text != "" {
		p.failed[f] = text
		p.log.Warn("a container listens in the machine's own network, and its port is not open on the host", "port", f.Port,
			"protocol", f.Protocol, "err", text)
	}
}

// setListeners makes list what the watcher of sockets holds. Those that stay keep their numbers.
func (p *Ports) setListeners(list []api.Forward) {
	p.mu.Lock()
	defer p.mu.Unlock()
	want := map[api.Forward]bool{}
	for _, f := range list {
		f.ID = 0
		want[f] = true
	}
	changed := false
	for id, h := range p.held {
		f := h.forward
		f.ID = 0
		if h.listener && !want[f] {
			delete(p.held, id)
			delete(p.failed, f)
			changed = true
		} else if h.listener {
			delete(want, f)
		}
	}
	for _, f := range list { // in their order, so that numbers are the same each time
		f.ID = 0
		if want[f] && len(p.held) < maxForwards {
			delete(want, f)
			p.add(f, true)
			changed = true
		}
	}
	if changed {
		p.tell()
	}
}

// leads is whether a forward of the set leads to this address.
func (p *Ports) leads(protocol string, to netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, h := range p.held {
		if h.forward.Protocol != protocol {
			continue
		}
		if at, err := netip.ParseAddrPort(h.forward.To); err == nil && at == to {
			return true
		}
	}
	return false
}
