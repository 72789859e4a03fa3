package network

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// roleVariable tells a child of the test's, in a network namespace of its own, what it is.
const roleVariable = "CORACLE_TEST_ROLE"

func TestMain(m *testing.M) {
	if name, ok := strings.CutPrefix(os.Getenv(roleVariable), "server "); ok {
		serveAs(name)
		return
	}
	os.Exit(m.Run())
}

// anew runs the calling test again in namespaces of its own, and returns false; there it returns true.
func anew(t *testing.T) bool {
	t.Helper()
	if os.Getenv(roleVariable) == "test" {
		run(t, "ip", "link", "set", "lo", "up")
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("needs network namespaces; run it as root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs the program ip; install iproute2")
	}
	c := exec.Command("/proc/self/exe", "-test.v", "-test.run=^"+t.Name()+"$")
	c.Env = append(os.Environ(), roleVariable+"=test")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := c.CombinedOutput()
	switch {
	case err != nil && len(out) == 0:
		t.Skipf("needs network namespaces, which this machine refuses: %v; run it as root outside a container", err)
	case err != nil:
		t.Errorf("in a namespace: %v\n%s", err, out)
	case strings.Contains(string(out), "--- SKIP"):
		t.Skipf("in a namespace:\n%s", out)
	}
	return false
}

func run(t *testing.T, words ...string) {
	t.Helper()
	if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", words, err, out)
	}
}

const (
	site     = "203.0.113.80" // the same in both networks
	sitePort = 80
)

// serveAs is a network beyond an uplink: a site that tells the network's name, and a name server that says the same.
func serveAs(name string) {
	in := bufio.NewReader(os.Stdin)
	in.ReadString('\n') // the uplink is there
	must := func(err error) {
		if err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
	}
	for _, c := range [][]string{
		{"link", "set", "lo", "up"}, {"link", "set", "far", "up"}, {"addr", "add", "10.99." + name + ".1/24", "dev", "far"},
		{"addr", "add", site + "/32", "dev", "lo"},
	} {
		must(exec.Command("ip", c...).Run())
	}
	l, err := net.Listen("tcp4", fmt.Sprintf("%s:%d", site, sitePort))
	must(err)
	dns, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP("10.99." + name + ".1"), Port: 53})
	must(err)
	go func() {
		for {
			c, err := l.Accept()
			must(err)
			fmt.Fprint(c, name)
			c.Close()
		}
	}()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := dns.ReadFromUDPAddrPort(buf)
			must(err)
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil {
				continue
			}
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			q := m.Questions[0]
			h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
			switch q.Type {
			case dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: netip.MustParseAddr("192.0.2." + name).As4()}}}
			case dnsmessage.TypeTXT:
				m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.TXTResource{TXT: []string{name}}}}
			}
			b, err := m.Pack()
			must(err)
			dns.WriteToUDPAddrPort(b, from)
		}
	}()
	fmt.Println("ready")
	io.Copy(io.Discard, in)
}

// uplink makes a network and a cable to it.
func uplink(t *testing.T, name string) {
	t.Helper()
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), roleVariable+"=server "+name)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		c.Wait()
	})
	run(t, "ip", "link", "add", "up"+name, "type", "veth", "peer", "name", "far", "netns", fmt.Sprint(c.Process.Pid))
	run(t, "ip", "addr", "add", "10.99."+name+".2/24", "dev", "up"+name)
	run(t, "ip", "link", "set", "up"+name, "up")
	fmt.Fprintln(in, "go")
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("network %s: %q, %v", name, line, err)
	}
}

// faults.md row 19: the host goes from one network to another, and new connections and names follow within 10 s.
func TestNetworkMoves(t *testing.T) {
	if !anew(t) {
		return
	}
	uplink(t, "1")
	uplink(t, "2")
	conf := t.TempDir() + "/resolv.conf"
	move := func(name string) {
		t.Helper()
		run(t, "ip", "route", "replace", "default", "via", "10.99."+name+".1")
		if err := os.WriteFile(conf, []byte("nameserver 10.99."+name+".1\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	move("1")
	run(t, "mount", "--make-rprivate", "/")
	run(t, "mount", "--bind", conf, "/etc/resolv.conf")
	g := newGuest(t, Config{Loopback: true})
	at := netip.AddrPortFrom(netip.MustParseAddr(site), sitePort)
	client := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return g.dialUDP(netip.AddrPortFrom(g.net.addr.gateway, 53)), nil
	}}
	ask := func() string {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		site := "-"
		if c, err := g.dial(at); err == nil {
			c.SetDeadline(time.Now().Add(2 * time.Second))
			b, _ := io.ReadAll(c)
			site = string(b)
			c.Close()
		}
		addrs, _ := client.LookupNetIP(ctx, "ip4", "a.example.")
		texts, _ := client.LookupTXT(ctx, "a.example.")
		return fmt.Sprintf("%s%v%v", site, addrs, texts)
	}
	for _, name := range []string{"1", "2"} {
		move(name)
		moved := time.Now()
		want := fmt.Sprintf("%s[192.0.2.%s][%s]", name, name, name)
		got := ""
		for got != want && time.Since(moved) < 10*time.Second {
			got = ask()
		}
		if got != want {
			t.Fatalf("10 s after the move to %s: %s, want %s", name, got, want)
		}
		t.Logf("network %s after %v", name, time.Since(moved).Round(time.Millisecond))
	}
}

// TestPingAllowed is TestPing where the system gives everybody sockets for pings.
func TestPingAllowed(t *testing.T) {
	if !anew(t) {
		return
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0o644); err != nil {
		t.Skipf("allow pings: %v; run it where /proc/sys is writable", err)
	}
	run(t, "ip", "addr", "add", "192.0.2.7/32", "dev", "lo")
	pings(t)
}
