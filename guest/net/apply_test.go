//go:build linux

package net

import (
	"net"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-engine/coracle/guest/api"
)

// TestApply sets a link of this machine's kernel, in a network namespace of its own, to one state after the other.
func TestApply(t *testing.T) {
	runtime.LockOSThread() // and never back: the thread ends with its namespace
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("make a network namespace: %v; run it as root", err)
	}
	if out, err := exec.Command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far").CombinedOutput(); err != nil {
		t.Skipf("make a link: %v; install iproute2, and load the module veth\n%s", err, out)
	}
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for _, step := range []struct {
		name   string
		n      api.Network
		err    string
		addr   string
		route  string
		mtu    string
		linked bool
	}{
		{"up", api.Network{Address: "192.168.65.3/24", Gateway: "192.168.65.1", MTU: 65520}, "", "192.168.65.3/24", "default via 192.168.65.1", "mtu 65520", true},
		{"again", api.Network{Address: "192.168.65.3/24", Gateway: "192.168.65.1", MTU: 65520}, "", "192.168.65.3/24", "default via 192.168.65.1", "mtu 65520", true},
		{"another", api.Network{Address: "10.9.0.3/24", Gateway: "10.9.0.1", MTU: 1400}, "", "10.9.0.3/24", "default via 10.9.0.1", "mtu 1400", true},
		{"larger than it takes", api.Network{Address: "10.9.1.3/24", Gateway: "10.9.1.1", MTU: 65535 + 1<<20}, "set mtu", "10.9.1.3/24", "default via 10.9.1.1", "mtu 1400", true},
		{"down", api.Network{}, "", "", "", "mtu 1400", false},
	} {
		w, err := plan(api.Network{Address: step.n.Address, Gateway: step.n.Gateway})
		if err != nil {
			t.Fatal(err)
		}
		w.mtu = step.n.MTU
		iface, err := net.InterfaceByName("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if err := w.apply(c, iface); (step.err == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), step.err) {
			t.Errorf("%s: %v, want %q", step.name, err, step.err)
		}
		link, route := show(t, "addr", "show", "eth0"), show(t, "route")
		if step.linked && strings.Contains(link, "state DOWN") || !strings.Contains(link, step.mtu) || strings.Count(link, "inet ") > 1 ||
			step.linked && !strings.Contains(link, "inet "+step.addr+" ") || !strings.HasPrefix(route, step.route) || step.route == "" && route != "" {
			t.Errorf("%s: link is\n%sroutes are\n%s", step.name, link, route)
		}
	}
}

func show(t *testing.T, words ...string) string {
	t.Helper()
	out, err := exec.Command("ip", words...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %v: %v\n%s", words, err, out)
	}
	return string(out)
}
