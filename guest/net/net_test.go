//go:build linux

package net

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/sys/unix"
)

// The messages are what iproute2 sends for the same (ip link set, ip addr replace, ip route replace), little-endian.
func TestMessages(t *testing.T) {
	if native.Uint16([]byte{1, 0}) != 1 {
		t.Skip("the expected bytes are little-endian")
	}
	for name, c := range map[string]struct {
		m    message
		want string
	}{
		"link up": {linkMessage(2, true, 0), "20000000 1000 0500 07000000 00000000" + "00 00 0000 02000000 01000000 01000000"},
		"link up, mtu 1400": {linkMessage(2, true, 1400), "28000000 1000 0500 07000000 00000000" +
			"00 00 0000 02000000 01000000 01000000" + "0800 0400 78050000"},
		"link down": {linkMessage(3, false, 0), "20000000 1000 0500 07000000 00000000" + "00 00 0000 03000000 00000000 01000000"},
		"new address": {addressMessage(unix.RTM_NEWADDR, 2, netip.MustParsePrefix("10.0.2.15/24")), "28000000 1400 0505 07000000 00000000" +
			"02 18 00 00 02000000" + "0800 0200 0a00020f" + "0800 0100 0a00020f"},
		"delete address": {addressMessage(unix.RTM_DELADDR, 2, netip.MustParsePrefix("10.0.2.15/24")), "28000000 1500 0500 07000000 00000000" +
			"02 18 00 00 02000000" + "0800 0200 0a00020f" + "0800 0100 0a00020f"},
		"new IPv6 address": {addressMessage(unix.RTM_NEWADDR, 2, netip.MustParsePrefix("fd00::2/64")), "40000000 1400 0505 07000000 00000000" +
			"0a 40 00 00 02000000" + "1400 0200 fd000000000000000000000000000002" + "1400 0100 fd000000000000000000000000000002"},
		"default route": {routeMessage(2, netip.MustParseAddr("10.0.2.2")), "2c000000 1800 0505 07000000 00000000" +
			"02 00 00 00 fe 03 00 01 00000000" + "0800 0500 0a000202" + "0800 0400 02000000"},
	} {
		if got, want := hex.EncodeToString(c.m.encode(7)), strings.ReplaceAll(c.want, " ", ""); got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
}

func TestAttrPads(t *testing.T) {
	if got := attr(nil, 1, []byte("abcde")); len(got) != 12 || native.Uint16(got) != 9 {
		t.Errorf("attr is % x", got)
	}
}

func answer(kind uint16, seq uint32, code int32) []byte {
	b := message{kind: kind, body: native.AppendUint32(nil, uint32(code))}.encode(seq)
	return b
}

func TestAcknowledged(t *testing.T) {
	other := answer(unix.RTM_NEWLINK, 0, 0)
	for name, c := range map[string]struct {
		b    []byte
		done bool
		err  error
	}{
		"yes":               {answer(unix.NLMSG_ERROR, 7, 0), true, nil},
		"no":                {answer(unix.NLMSG_ERROR, 7, -int32(unix.EEXIST)), true, unix.EEXIST},
		"another's":         {answer(unix.NLMSG_ERROR, 6, -1), false, nil},
		"after another one": {append(other, answer(unix.NLMSG_ERROR, 7, 0)...), true, nil},
		"nothing":           {nil, false, nil},
	} {
		done, err := acknowledged(c.b, 7)
		if done != c.done || !errors.Is(err, c.err) {
			t.Errorf("%s: %v, %v", name, done, err)
		}
	}
}

func FuzzAcknowledged(f *testing.F) {
	f.Add(answer(unix.NLMSG_ERROR, 7, -17))
	f.Add(append(answer(unix.RTM_NEWLINK, 0, 0), 1, 2, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		if done, err := acknowledged(b, 7); !done && err != nil {
			t.Fatalf("an error without an answer: %v", err)
		}
	})
}

func TestPlan(t *testing.T) {
	for name, c := range map[string]struct {
		n    api.Network
		want string
	}{
		"none":            {api.Network{}, ""},
		"full":            {api.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", DNS: []string{"10.0.2.3", "fd00::3"}, MTU: 1500}, ""},
		"no prefix":       {api.Network{Address: "10.0.2.15"}, "parse network address"},
		"bad gateway":     {api.Network{Address: "10.0.2.15/24", Gateway: "router"}, "parse gateway"},
		"mixed families":  {api.Network{Address: "10.0.2.15/24", Gateway: "fd00::1"}, "different families"},
		"bad name server": {api.Network{DNS: []string{"10.0.2.3\noptions x"}}, "parse name server"},
		"tiny mtu":        {api.Network{MTU: 100}, "mtu"},
		"huge mtu":        {api.Network{MTU: 1 << 20}, "mtu"},
	} {
		_, err := plan(c.n)
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestOutside(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"docker0", "lo"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := outside(dir); err == nil {
		t.Errorf("found %q among links that software made", got)
	}
	if err := os.MkdirAll(filepath.Join(dir, "eth0", "device"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := outside(dir); err != nil || got != "eth0" {
		t.Errorf("outside() = %q, %v", got, err)
	}
}

func TestResolvConf(t *testing.T) {
	if got := resolvConf([]string{"10.0.2.3", "fd00::3"}); got != "nameserver 10.0.2.3\nnameserver fd00::3\n" {
		t.Errorf("resolv.conf is %q", got)
	}
}

func TestSetHostnameRefuses(t *testing.T) {
	for _, name := range []string{"two words", "a\nb", strings.Repeat("x", 65), "../x"} {
		if err := SetHostname(name); err == nil || !strings.Contains(err.Error(), "not a host name") {
			t.Errorf("SetHostname(%q) = %v", name, err)
		}
	}
}
