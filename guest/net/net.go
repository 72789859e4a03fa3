//go:build linux

// Package net sets the guest's one link to the outside as the Spec says: address, default route, names and name servers. It
// speaks rtnetlink (man 7 rtnetlink) itself: four kinds of message are all that a guest with one card needs. Docker's own
// bridges and the containers' links are dockerd's business. guest/agent calls it at boot and with each new Spec.
package net

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/sys/unix"
)

// Where the files are that the root's /etc points to.
const (
	ResolvPath   = "/run/resolv.conf"
	HostsPath    = "/run/hosts"
	HostnamePath = "/run/hostname"
)

// Loopback sets the loopback link up.
func Loopback() error {
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	return c.call(linkMessage(lo.Index, true, 0))
}

// Apply makes n the whole state of the guest's link, and writes the name servers. It may be called again at any time. A link
// that takes no packets as large as n says is set up all the same, and the error says so.
func Apply(n api.Network) error {
	p, err := plan(n)
	if err != nil {
		return err
	}
	if err := writeFile(ResolvPath, resolvConf(n.DNS)); err != nil {
		return err
	}
	link, err := outside("/sys/class/net")
	if err != nil {
		if !p.address.IsValid() {
			return nil
		}
		return err
	}
	iface, err := net.InterfaceByName(link)
	if err != nil {
		return fmt.Errorf("find link %s: %w", link, err)
	}
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	return p.apply(c, iface)
}

// wanted is a Network that was checked.
type wanted struct {
	address netip.Prefix // invalid: the link stays down
	gateway netip.Addr   // invalid: no default route
	mtu     int
}

func plan(n api.Network) (wanted, error) {
	w := wanted{mtu: n.MTU}
	if n.MTU != 0 && (n.MTU < 576 || n.MTU > 65535) {
		return w, fmt.Errorf("network mtu is %d: want 576 to 65535, or 0", n.MTU)
	}
	for _, s := range n.DNS {
		if _, err := netip.ParseAddr(s); err != nil {
			return w, fmt.Errorf("parse name server: %w", err)
		}
	}
	var err error
	if n.Address != "" {
		if w.address, err = netip.ParsePrefix(n.Address); err != nil {
			return w, fmt.Errorf("parse network address: %w", err)
		}
	}
	if n.Gateway != "" {
		if w.gateway, err = netip.ParseAddr(n.Gateway); err != nil {
			return w, fmt.Errorf("parse gateway: %w", err)
		}
		if w.address.IsValid() && w.gateway.Is4() != w.address.Addr().Is4() {
			return w, fmt.Errorf("gateway %s and address %s are of different families", w.gateway, w.address)
		}
	}
	return w, nil
}

func (w wanted) apply(c *conn, iface *net.Interface) error {
	if !w.address.IsValid() {
		return c.call(linkMessage(iface.Index, false, 0))
	}
	addrs, err := iface.Addrs()
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", iface.Name, err)
	}
	for _, a := range addrs {
		old, err := netip.ParsePrefix(a.String())
		if err != nil || old == w.address || old.Addr().IsLinkLocalUnicast() {
			continue
		}
		if err := c.call(addressMessage(unix.RTM_DELADDR, iface.Index, old)); err != nil {
			return fmt.Errorf("remove address %s: %w", old, err)
		}
	}
	large := c.call(linkMessage(iface.Index, true, w.mtu))
	if large != nil { // a card may take less: one that is slow is of more use than none
		large = fmt.Errorf("set mtu %d of link %s: %w", w.mtu, iface.Name, large)
		if err := c.call(linkMessage(iface.Index, true, 0)); err != nil {
			return fmt.Errorf("set link %s up: %w", iface.Name, err)
		}
	}
	if err := c.call(addressMessage(unix.RTM_NEWADDR, iface.Index, w.address)); err != nil {
		return fmt.Errorf("set address %s: %w", w.address, err)
	}
	if !w.gateway.IsValid() {
		return large
	}
	if err := c.call(routeMessage(iface.Index, w.gateway)); err != nil {
		return fmt.Errorf("set default route by %s: %w", w.gateway, err)
	}
	return large
}

// outside finds the link that is a device of its own, not one that software made.
func outside(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("list links: %w", err)
	}
	i := slices.IndexFunc(entries, func(e os.DirEntry) bool {
		_, err := os.Stat(filepath.Join(dir, e.Name(), "device"))
		return err == nil
	})
	if i < 0 {
		return "", errors.New("find link to the outside: the machine has no network card")
	}
	return entries[i].Name(), nil
}

func resolvConf(servers []string) string {
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	return b.String()
}

// SetHostname names the guest; an empty name is coracle.
func SetHostname(name string) error {
	if name == "" {
		name = "coracle"
	}
	if len(name) > 64 || strings.ContainsAny(name, " \t\r\n/") {
		return fmt.Errorf("set host name %q: not a host name", name)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	if err := writeFile(HostsPath, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t"+name+"\n"); err != nil {
		return err
	}
	return writeFile(HostnamePath, name+"\n")
}

// writeFile replaces path at once, so that a reader sees the old or the new.
func writeFile(path, text string) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
