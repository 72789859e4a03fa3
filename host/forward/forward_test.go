package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/google/go-cmp/cmp"
)

func mustAddrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func failingDial(context.Context, uint32) (net.Conn, error) {
	return nil, errors.New("the guest is gone")
}

func TestPlan(t *testing.T) {
	fw := func(id uint64, address string) guestapi.Forward { return tcpForward(id, address, 80) }
	for _, tt := range []struct {
		name, setting string
		list          []guestapi.Forward
		want          string // the sockets and whom they serve
		errs          map[uint64]string
	}{
		{"dockerd's pair", "127.0.0.1", []guestapi.Forward{fw(1, "0.0.0.0"), fw(2, "::")}, "127.0.0.1:80/tcp[1] [::1]:80/tcp[2]?", nil},
		{"the pair, everywhere", "0.0.0.0", []guestapi.Forward{fw(1, "0.0.0.0"), fw(2, "::")}, "0.0.0.0:80/tcp[1] [::]:80/tcp[2]?", nil},
		{"the pair at one address", "192.0.2.1", []guestapi.Forward{fw(1, "0.0.0.0"), fw(2, "::")}, "192.0.2.1:80/tcp[1 2]", nil},
		{"one for both families", "127.0.0.1", []guestapi.Forward{fw(1, "")}, "127.0.0.1:80/tcp[1] [::1]:80/tcp[1]?", nil},
		{"a given address", "0.0.0.0", []guestapi.Forward{fw(1, "127.0.0.1"), fw(2, "::ffff:192.0.2.7")}, "127.0.0.1:80/tcp[1] 192.0.2.7:80/tcp[2]", nil},
		{"two that exclude each other", "127.0.0.1", []guestapi.Forward{fw(9, "127.0.0.1"), fw(3, "")},
			"127.0.0.1:80/tcp[3] [::1]:80/tcp[3]?", map[uint64]string{9: "address already in use by this machine's own port"}},
		{"nonsense", "127.0.0.1", []guestapi.Forward{
			{ID: 1, Protocol: "sctp", Port: 1, To: "1.2.3.4:5"}, {ID: 2, Protocol: "tcp", To: "1.2.3.4:5"}, {ID: 3, Protocol: "tcp", Port: 1, To: "x"},
			{ID: 4, Protocol: "udp", Port: 1, To: "1.2.3.4:5", Address: "evil.example"}, {ID: 5, Protocol: "udp", Port: 1, To: "1.2.3.4:5", Address: "224.0.0.1"},
		}, "", map[uint64]string{1: "only TCP and UDP", 2: "port 0", 3: "no address in the machine", 4: "not an address", 5: "not an address"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			claims, errs := plan(tt.list, netip.MustParseAddr(tt.setting))
			var got []string
			for _, k := range sorted(claims) {
				s := fmt.Sprintf("%v%v", k, claims[k].ids)
				if claims[k].optional {
					s += "?"
				}
				got = append(got, s)
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("plan: %s, want %s", s, tt.want)
			}
			for id, want := range tt.errs {
				if errs[id] == nil || !strings.Contains(errs[id].Error(), want) {
					t.Errorf("error of %d: %v, want %q", id, errs[id], want)
				}
			}
			if len(errs) != len(tt.errs) {
				t.Errorf("errors: %v", errs)
			}
		})
	}
	t.Run("too many", func(t *testing.T) {
		var list []guestapi.Forward
		for i := range maxForwards + 3 {
			list = append(list, guestapi.Forward{ID: uint64(i + 1), Protocol: "udp", Address: "127.0.0.1", Port: uint16(i + 1), To: "1.2.3.4:5"})
		}
		claims, errs := plan(list, netip.IPv4Unspecified())
		if len(claims) != maxForwards || len(errs) != 3 {
			t.Errorf("%d sockets, %d errors", len(claims), len(errs))
		}
	})
}

func FuzzPlan(f *testing.F) {
	f.Add("tcp", "0.0.0.0", uint16(80), "1.2.3.4:80", "::", true)
	f.Add("udp", "fe80::1%eth0", uint16(1), "[::1]:5", "", false)
	f.Fuzz(func(t *testing.T, protocol, address string, port uint16, to, other string, everywhere bool) {
		setting := netip.MustParseAddr("127.0.0.1")
		if everywhere {
			setting = netip.IPv4Unspecified()
		}
		list := []guestapi.Forward{
			{ID: 2, Protocol: protocol, Address: address, Port: port, To: to}, {ID: 1, Protocol: protocol, Address: other, Port: port, To: to},
		}
		claims, errs := plan(list, setting)
		for k, c := range claims {
			if k.protocol != "tcp" && k.protocol != "udp" || k.at.Port() == 0 || k.at.Addr().IsMulticast() || !k.at.IsValid() {
				t.Fatalf("socket %v of %+v", k, list)
			}
			// A guest that names no address gets none but the setting's.
			if follows(c.owner) && k.at.Addr().IsUnspecified() && !everywhere {
				t.Fatalf("socket %v although the setting is %v", k, setting)
			}
		}
		for _, w := range list {
			served := false
			for _, c := range claims {
				for _, id := range c.ids {
					served = served || id == w.ID
				}
			}
			if !served && errs[w.ID] == nil {
				t.Fatalf("%+v is neither served nor refused", w)
			}
		}
	})
}

// Test 4 and 19 of the attacks (CVE-2021-4024, CVE-2025-54388): nothing listens at all addresses that was not asked to.
func TestAddresses(t *testing.T) {
	needIPv6(t)
	f, _ := newForwarder(t, echo)
	port := freePort(t)
	list := []guestapi.Forward{tcpForward(1, "0.0.0.0", port), tcpForward(2, "::", port),
		{ID: 3, Protocol: "udp", Port: port, To: "172.17.0.2:53"}}
	open(t, f, list...)
	loopback := []string{"tcp 127.0.0.1", "tcp ::1", "udp 127.0.0.1", "udp ::1"}
	if got := addresses(f); !cmp.Equal(got, loopback) {
		t.Errorf("open at %v", got)
	}
	reachable := func(address string) bool {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(address, itoa(port)), time.Second)
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	if !reachable("127.0.0.1") || !reachable("::1") || reachable("127.0.0.2") {
		t.Error("open where it was not asked to be, or not where it was")
	}
	if err := f.SetAddress(t.Context(), "0.0.0.0"); err != nil {
		t.Fatal(err)
	}
	if got, want := addresses(f), []string{"tcp 0.0.0.0", "tcp ::", "udp 0.0.0.0", "udp ::"}; !cmp.Equal(got, want) {
		t.Errorf("open at %v, want %v", got, want)
	}
	if !reachable("127.0.0.2") {
		t.Error("not open at all addresses")
	}
	if err := f.SetAddress(t.Context(), "127.0.0.1"); err != nil || reachable("127.0.0.2") {
		t.Errorf("back at the loopback: %v", err)
	}
	if err := f.SetAddress(t.Context(), "203.0.113.77"); err == nil || !strings.Contains(err.Error(), "no address 203.0.113.77") {
		t.Errorf("moved to an address that is not this host's: %v", err)
	}
	if got := addresses(f); !cmp.Equal(got, loopback) {
		t.Errorf("after an address that could not be: open at %v", got)
	}
	for _, bad := range []string{"", "localhost", "224.0.0.1", "1.2.3.4:80", "fe80::1%lo"} {
		if err := f.SetAddress(t.Context(), bad); err == nil {
			t.Errorf("address %q was taken", bad)
		}
	}
}

func TestReconcile(t *testing.T) {
	f, _ := newForwarder(t, echo)
	stay, gone := freePort(t), freePort(t)
	open(t, f, tcpForward(1, "127.0.0.1", stay), tcpForward(2, "127.0.0.1", gone))
	ask := func(c net.Conn) error {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	kept, lost := dialTCP(t, "127.0.0.1:"+itoa(stay)), dialTCP(t, "127.0.0.1:"+itoa(gone))
	if err := errors.Join(ask(kept), ask(lost)); err != nil {
		t.Fatal(err)
	}
	open(t, f, tcpForward(1, "127.0.0.1", stay), tcpForward(3, "127.0.0.2", stay))
	if err := ask(kept); err != nil {
		t.Errorf("a port that stayed lost its connection: %v", err)
	}
	if err := ask(lost); err == nil {
		t.Error("a port that went kept its connection")
	}
	if c, err := net.Dial("tcp", "127.0.0.1:"+itoa(gone)); err == nil {
		c.Close()
		t.Error("a port that went is still open")
	}
	// Another container behind the same port: the old one's connections end, new ones reach it.
	open(t, f, tcpForward(4, "127.0.0.1", stay))
	if err := ask(kept); err == nil {
		t.Error("a connection outlived its container")
	}
	if err := ask(dialTCP(t, "127.0.0.1:"+itoa(stay))); err != nil {
		t.Error(err)
	}
	f.Close()
	f.Close()
	if out := f.Set(t.Context(), []guestapi.Forward{tcpForward(9, "", gone)}); out[0].Error == "" {
		t.Error("opened a port after Close")
	}
}

// Row 26 of the faults.
func TestConflict(t *testing.T) {
	needIPv6(t)
	f, _ := newForwarder(t, echo)
	port := freePort(t)
	taken, err := net.Listen("tcp6", "[::1]:"+itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	udp := guestapi.Forward{ID: 7, Protocol: "udp", Port: port, To: "172.17.0.2:53"}
	list := []guestapi.Forward{tcpForward(1, "", port), udp}
	out := f.Set(t.Context(), list)
	want := fmt.Sprintf("failed to bind host port [::1]:%d/tcp: address already in use", port)
	if !strings.Contains(out[0].Error, want) || out[1].Error != "" {
		t.Errorf("outcome %+v, want %q", out, want)
	}
	if _, err := os.Stat("/proc/net/tcp"); err == nil && !strings.Contains(out[0].Error, fmt.Sprintf("(process %d)", os.Getpid())) {
		t.Errorf("outcome %q does not say who has the port", out[0].Error)
	}
	if c, err := net.Dial("tcp", "127.0.0.1:"+itoa(port)); err == nil {
		c.Close()
		t.Error("half of the port is open")
	}
	for _, p := range f.List() {
		if p.Protocol == "tcp" && p.Address.Addr().Is6() && !strings.Contains(p.Error, "in use") {
			t.Errorf("status is %+v", p)
		}
	}
	taken.Close()
	open(t, f, list...)

	other := f.Set(t.Context(), append(list, tcpForward(3, "0.0.0.0", port), tcpForward(4, "127.0.0.1", port)))
	if other[2].Error != "" || !strings.Contains(other[3].Error, "own port") {
		t.Errorf("outcome %+v", other)
	}
	if err := f.SetAddress(t.Context(), "0.0.0.0"); err != nil && !strings.Contains(err.Error(), "own port") {
		t.Errorf("SetAddress: %v", err)
	}
}

func TestExplain(t *testing.T) {
	f, _ := newForwarder(t, echo)
	out := f.Set(t.Context(), []guestapi.Forward{tcpForward(1, "203.0.113.77", freePort(t))})
	if !strings.Contains(out[0].Error, "this host has no address 203.0.113.77") {
		t.Errorf("outcome %+v", out)
	}
	for goos, want := range map[string]string{"linux": "ip_unprivileged_port_start=80", "darwin": "0.0.0.0", "windows": "from 1024"} {
		if got := remedy(goos, mustAddrPort("127.0.0.1:80")); !strings.Contains(got, want) {
			t.Errorf("remedy on %s: %q", goos, got)
		}
		if got := remedy(goos, mustAddrPort("127.0.0.1:8080")); got != "" {
			t.Errorf("remedy for 8080 on %s: %q", goos, got)
		}
	}
}
