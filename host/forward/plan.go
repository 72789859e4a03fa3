package forward

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	guestapi "github.com/coracle-engine/coracle/guest/api"
)

// key is one socket: what no two forwards can have at once.
type key struct {
	protocol string
	at       netip.AddrPort
}

func (k key) String() string { return k.at.String() + "/" + k.protocol }

func (k key) compare(o key) int {
	return cmp.Or(cmp.Compare(k.protocol, o.protocol), cmp.Compare(k.at.Port(), o.at.Port()), k.at.Addr().Compare(o.at.Addr()))
}

// claim is who wants a socket.
type claim struct {
	owner    guestapi.Forward // whose guest's side it leads to
	ids      []uint64         // all that it serves, the owner among them
	optional bool             // the other family's half of a setting: a host without that family does without
}

func sorted(claims map[key]*claim) []key {
	return slices.SortedFunc(maps.Keys(claims), key.compare)
}

// place is where a forward is to be open.
type place struct {
	addr     netip.Addr
	optional bool
}

// places are the setting's addresses: a loopback or unspecified IPv4 address has its IPv6 twin beside it, so that
// "localhost" means the same whichever family a client tries first.
func places(setting netip.Addr) []place {
	switch setting {
	case netip.AddrFrom4([4]byte{127, 0, 0, 1}):
		return []place{{addr: setting}, {netip.IPv6Loopback(), true}}
	case netip.IPv4Unspecified():
		return []place{{addr: setting}, {netip.IPv6Unspecified(), true}}
	}
	return []place{{addr: setting}}
}

// where says at which addresses forward f is to be open. One that names 0.0.0.0 or :: gets the setting's addresses of that
// family, since dockerd sends a pair of them, each leading to the container's address of its family; where the setting has
// only the other family, it gets that.
func where(f guestapi.Forward, setting netip.Addr) ([]place, error) {
	all := places(setting)
	if f.Address == "" {
		return all, nil
	}
	a, err := netip.ParseAddr(f.Address)
	if err != nil || a.IsMulticast() || len(f.Address) > 64 {
		return nil, errors.New("open host port: not an address of a host")
	}
	a = a.Unmap()
	if !a.IsUnspecified() {
		return []place{{addr: a}}, nil
	}
	same := slices.DeleteFunc(slices.Clone(all), func(p place) bool { return p.addr.Is4() != a.Is4() })
	if len(same) == 0 {
		return all, nil
	}
	return same, nil
}

// check refuses what no port can be made of.
func check(f guestapi.Forward) error {
	switch {
	case f.Protocol != "tcp" && f.Protocol != "udp":
		return errors.New("open host port: only TCP and UDP can be published on this host")
	case f.Port == 0:
		return errors.New("open host port: port 0 cannot be published")
	}
	if _, err := netip.ParseAddrPort(f.To); err != nil || len(f.To) > 64 {
		return errors.New("open host port: it leads to no address in the machine")
	}
	return nil
}

// plan says which sockets list needs, and what of it cannot be. Of two forwards that want the same socket the older has it;
// the other one fails, unless both only follow the setting, where one socket is what both asked for.
func plan(list []guestapi.Forward, setting netip.Addr) (map[key]*claim, map[uint64]error) {
	claims, errs := map[key]*claim{}, map[uint64]error{}
	list = slices.SortedStableFunc(slices.Values(list), func(a, b guestapi.Forward) int { return cmp.Compare(a.ID, b.ID) })
	for i, f := range list {
		err := check(f)
		if i >= maxForwards {
			err = fmt.Errorf("open host port: a machine publishes at most %d ports", maxForwards)
		}
		at, werr := where(f, setting)
		if err = errors.Join(err, werr); err != nil {
			errs[f.ID] = err
			continue
		}
		for _, p := range at {
			k := key{f.Protocol, netip.AddrPortFrom(p.addr, f.Port)}
			c := claims[k]
			switch {
			case c == nil:
				claims[k] = &claim{owner: f, ids: []uint64{f.ID}, optional: p.optional}
			case follows(c.owner) && follows(f):
				c.ids = append(c.ids, f.ID)
			default:
				errs[f.ID] = fmt.Errorf("failed to bind host port %v: address already in use by this machine's own port %s to %s",
					k, c.owner.Address, c.owner.To)
			}
		}
	}
	return claims, errs
}

// follows is whether the setting decides where f is open.
func follows(f guestapi.Forward) bool {
	a, err := netip.ParseAddr(f.Address)
	return f.Address == "" || err == nil && a.IsUnspecified()
}
