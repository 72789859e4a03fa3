// Package forward opens published ports on the host and carries what comes in to the guest: for each TCP connection, and for
// each client of a UDP port, one stream of guestapi.PortConnect. It is told the whole set of ports that are to be open
// (Forwarder.Set) and makes it so. Its neighbours are host/machine, which hands it the guest's forwards and opens streams for
// it, and guest/watch at the other end. The guest is hostile: it can ask for ports, and for no more than a user could open.
package forward

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	guestapi "github.com/coracle-engine/coracle/guest/api"
)

// Bounds of one machine.
const (
	maxForwards    = 4096 // published ports
	maxConnections = 2048 // TCP connections in flight; those beyond wait in the system's queue. A machine carries 4096 streams in all
	maxFlows       = 1024 // clients of UDP ports; the one that was silent longest goes first
)

// Config is what a Forwarder needs.
type Config struct {
	Log *slog.Logger
	// Dial opens a greeted stream to a port of the guest. The stream has CloseWrite; where it also has Reset() bool, that says
	// after the stream's end whether the guest broke it off.
	Dial func(ctx context.Context, port uint32) (net.Conn, error)
	// Address is where a port opens that names no address of its own; see Forwarder.SetAddress.
	Address string
}

// Forwarder keeps a set of ports open. Its methods may be called from several goroutines.
type Forwarder struct {
	cfg   Config
	slots chan struct{} // one for each TCP connection
	flows *flows
	wait  sync.WaitGroup // for what serves ports and connections

	mu      sync.Mutex
	address netip.Addr
	want    []guestapi.Forward
	ports   map[key]*port
	errs    map[key]error // of ports that are wanted and could not be opened
	closed  bool
}

// New makes a Forwarder that has nothing open. It fails where the address is none.
func New(cfg Config) (*Forwarder, error) {
	f := &Forwarder{cfg: cfg, slots: make(chan struct{}, maxConnections), ports: map[key]*port{}, errs: map[key]error{}}
	f.flows = newFlows(maxFlows)
	address, err := parseAddress(cfg.Address)
	if err != nil {
		return nil, err
	}
	f.address = address
	return f, nil
}

// Set makes list the whole set of what is open and returns what became of each. Ports that stay keep their listeners and
// connections; the connections of those that go end. A forward that could not be opened whole is not open at all, and is
// tried again with the next Set. After Close all are refused.
func (f *Forwarder) Set(ctx context.Context, list []guestapi.Forward) []guestapi.Publication {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.want = slices.Clone(list)
	return f.reconcile(ctx)
}

// SetAddress says where ports open that name no address of their own: 127.0.0.1 (and ::1 beside it), 0.0.0.0 (and ::), or an
// address of this host. What is open at the old one is closed and opened at the new. Where a port cannot be open at the new
// address that was at the old one, all stays as it was; the connections that were closed on the way are lost.
func (f *Forwarder) SetAddress(ctx context.Context, address string) error {
	a, err := parseAddress(address)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if a == f.address {
		return nil
	}
	failed := map[uint64]bool{}
	for _, p := range f.reconcile(ctx) {
		failed[p.ID] = p.Error != ""
	}
	old := f.address
	f.address = a
	var errs []error
	told := map[string]bool{} // the two families of a port can fail alike
	for _, p := range f.reconcile(ctx) {
		if p.Error != "" && !failed[p.ID] && !told[p.Error] {
			told[p.Error] = true
			errs = append(errs, errors.New(p.Error))
		}
	}
	if len(errs) > 0 {
		f.address = old
		f.reconcile(ctx)
	}
	return errors.Join(errs...)
}

func parseAddress(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.IsMulticast() || a.Zone() != "" {
		return a, fmt.Errorf("%q is not an IP address that ports can be opened at", s)
	}
	return a.Unmap(), nil
}

// Port is one published port as List tells of it.
type Port struct {
	Protocol string         // "tcp" or "udp"
	Address  netip.AddrPort // of the host
	To       string         // address and port in the guest
	Error    string         // why it is not open; empty where it is
}

// List is what is open, and what was to be, in order of protocol, port and address.
func (f *Forwarder) List() []Port {
	f.mu.Lock()
	defer f.mu.Unlock()
	claims, _ := plan(f.want, f.address)
	var out []Port
	for k, c := range claims {
		p := Port{Protocol: k.protocol, Address: k.at, To: c.owner.To}
		if f.ports[k] == nil {
			err := f.errs[k]
			if err == nil { // an optional one, or one of a forward that failed elsewhere
				continue
			}
			p.Error = err.Error()
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b Port) int {
		return key{a.Protocol, a.Address}.compare(key{b.Protocol, b.Address})
	})
	return out
}

// Close closes all ports, ends all connections and waits for their ends. It may be called twice.
func (f *Forwarder) Close() {
	f.mu.Lock()
	f.closed = true
	f.want = nil
	f.reconcile(context.Background())
	f.mu.Unlock()
	f.wait.Wait()
}

// reconcile opens and closes what differs between what is wanted and what is. f.mu is held.
func (f *Forwarder) reconcile(ctx context.Context) []guestapi.Publication {
	claims, errs := plan(f.want, f.address)
	for k, p := range f.ports {
		if claims[k] == nil {
			p.close()
			delete(f.ports, k)
		}
	}
	clear(f.errs)
	for _, k := range sorted(claims) {
		c := claims[k]
		if p := f.ports[k]; p != nil {
			p.lead(c.owner)
			continue
		}
		p, err := f.open(ctx, k, c.owner)
		if err == nil {
			f.ports[k] = p
			continue
		}
		if c.optional && !isInUse(err) && !isDenied(err) {
			continue // this host has no IPv6
		}
		f.errs[k] = f.explain(ctx, k, err)
		for _, id := range c.ids {
			errs[id] = errors.Join(errs[id], f.errs[k])
		}
	}
	f.dropHalves(claims, errs)
	return outcomes(f.want, errs)
}

// dropHalves closes what only failed forwards want: nobody is to find half of a port open.
func (f *Forwarder) dropHalves(claims map[key]*claim, errs map[uint64]error) {
	for k, c := range claims {
		failed := !slices.ContainsFunc(c.ids, func(id uint64) bool { return errs[id] == nil })
		if p := f.ports[k]; p != nil && failed {
			p.close()
			delete(f.ports, k)
		}
	}
}

func outcomes(want []guestapi.Forward, errs map[uint64]error) []guestapi.Publication {
	out := make([]guestapi.Publication, 0, len(want))
	for _, w := range want {
		p := guestapi.Publication{ID: w.ID}
		if err := errs[w.ID]; err != nil {
			p.Error = err.Error()
		}
		out = append(out, p)
	}
	return out
}
