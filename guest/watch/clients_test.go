//go:build linux

package watch

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serveStrangers says to everyone on TCP and UDP who they are, and repeats what they say.
func serveStrangers(address string) {
	if strings.HasPrefix(address, "wait") { // for its network
		_, _ = io.ReadFull(os.Stdin, make([]byte, 1))
		address = strings.TrimPrefix(address, "wait")
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	u, err := net.ListenPacket("udp", address)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = u.WriteTo(fmt.Appendf(nil, "%v\n%s", from, buf[:n]), from)
		}
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			fmt.Fprintln(c, c.RemoteAddr())
			_, _ = io.Copy(c, struct{ io.Reader }{c})
			c.Close()
		}()
	}
}

// layOut makes a network as the guest has it: a link to the outside, and a container behind docker0 with the rules of
// dockerd's nftables backend that such traffic meets.
func layOut(t *testing.T) {
	t.Helper()
	shell(t, `
		ip link set lo up
		ip link add eth0 type veth peer name outside0
		ip link set outside0 up
		ip addr add 192.168.65.3/24 dev eth0
		ip addr add fd65::3/64 dev eth0 nodad
		ip link set eth0 up
		ip route add default via 192.168.65.1
		ip route add default via fd65::1
		ip link add docker0 type bridge
		ip addr add 172.31.0.1/24 dev docker0
		ip addr add fd31::1/64 dev docker0 nodad
		ip link set docker0 up
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1`)
	docker := exec.CommandContext(t.Context(), "nft", "-f", "-")
	docker.Stdin = strings.NewReader(`
		table ip docker-bridges {
			chain filter-FORWARD { type filter hook forward priority filter; policy accept; oifname docker0 jump in; iifname docker0 accept; }
			chain in { ct state established,related counter accept; counter drop; }
			chain nat-POSTROUTING { type nat hook postrouting priority srcnat; policy accept;
				iifname docker0 oifname != docker0 ip saddr 172.31.0.0/24 counter masquerade; }
			chain nat-PREROUTING { type nat hook prerouting priority dstnat; policy accept; fib daddr type local counter jump nat; }
			chain nat-OUTPUT { type nat hook output priority -100; policy accept; ip daddr != 127.0.0.0/8 fib daddr type local counter jump nat; }
			chain nat { iifname != docker0 tcp dport 8080 counter dnat to 172.31.0.2:80; }
			chain raw-PREROUTING { type filter hook prerouting priority raw; policy accept; ip daddr 172.31.0.2 iifname != { docker0 } counter drop; }
		}`)
	if out, err := docker.CombinedOutput(); err != nil {
		t.Skipf("this kernel's nftables has not what dockerd needs: %v: %s", err, out)
	}
}

// container starts one that serves strangers; without a gateway it can answer its neighbours alone.
func container(t *testing.T, number int, gateway bool) {
	t.Helper()
	cmd := as(t, "container", "wait[::]:80")
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	in := fmt.Sprintf("nsenter -t %d -n ", cmd.Process.Pid)
	shell(t, fmt.Sprintf(`
		ip link add veth%[1]d type veth peer name peer%[1]d netns %[2]d
		ip link set veth%[1]d master docker0 up
		%[3]s ip link set lo up
		%[3]s ip addr add 172.31.0.%[4]d/24 dev peer%[1]d
		%[3]s ip addr add fd31::%[4]d/64 dev peer%[1]d nodad
		%[3]s ip link set peer%[1]d up`, number, cmd.Process.Pid, in, number+1))
	if gateway {
		shell(t, in+"ip route add default via 172.31.0.1\n"+in+"ip route add default via fd31::1")
	}
	_, _ = stdin.Write([]byte{1})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("container said %q, %v", line, err)
	}
}

// heard has conn exchange a word with a server of strangers, and returns who that says we are.
func heard(t *testing.T, conn net.Conn) string {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	who, err := in.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if word, err := in.ReadString('\n'); word != "hello\n" {
		t.Fatalf("heard %q, %v", word, err)
	}
	return strings.TrimSpace(who)
}

// The client's address end to end, beside the rules that dockerd makes.
func TestClientAddress(t *testing.T) {
	if !inside(t) {
		return
	}
	layOut(t)
	container(t, 1, true)
	container(t, 2, false)
	local := as(t, "container", "[::]:9090")
	stdout, err := local.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := local.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = local.Process.Kill(); _ = local.Wait() }()
	_, _ = bufio.NewReader(stdout).ReadString('\n')

	clients := NewClients(slog.New(slog.NewTextHandler(os.Stderr, nil)), func(ctx context.Context, path string, args ...string) error {
		out, err := exec.CommandContext(ctx, "nft", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	clients.dir = t.TempDir()
	dial := func(t *testing.T, protocol, from, to string) net.Conn {
		t.Helper()
		var client netip.AddrPort
		if from != "" {
			client = netip.MustParseAddrPort(from)
		}
		conn, err := clients.dial(t.Context(), protocol, client, netip.MustParseAddrPort(to))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	if who := heard(t, dial(t, "tcp", "198.51.100.7:40000", "172.31.0.2:80")); !strings.HasPrefix(who, "172.31.0.1:") && !strings.HasPrefix(who, "[::ffff:172.31.0.1]:") {
		t.Errorf("while it is off the container sees %s", who)
	}
	heard(t, dial(t, "tcp", "", "[fd31::2]:80")) // once IPv6's neighbours have found each other, which takes them a second
	clients.Set(true)
	if !clients.prepare() {
		t.Fatalf("cannot be switched on: %v", clients.failed)
	}
	for _, tt := range []struct{ name, protocol, from, to, want string }{
		{"TCP", "tcp", "198.51.100.7:40001", "172.31.0.2:80", "198.51.100.7:40001"},
		{"UDP", "udp", "198.51.100.7:40002", "172.31.0.2:80", "198.51.100.7:40002"},
		{"TCP, IPv6", "tcp", "[2001:db8::7]:40003", "[fd31::2]:80", "[2001:db8::7]:40003"},
		{"UDP, IPv6", "udp", "[2001:db8::7]:40004", "[fd31::2]:80", "[2001:db8::7]:40004"},
		{"of the machine's own network, TCP", "tcp", "198.51.100.7:40005", "0.0.0.0:9090", "198.51.100.7:40005"},
		{"of the machine's own network, UDP", "udp", "198.51.100.7:40006", "0.0.0.0:9090", "198.51.100.7:40006"},
		{"of the machine's own network, IPv6", "tcp", "[2001:db8::7]:40007", "[::]:9090", "[2001:db8::7]:40007"},
		{"low port", "tcp", "198.51.100.7:80", "172.31.0.2:80", "198.51.100.7:80"},
		{"no address", "tcp", "", "172.31.0.2:80", "172.31.0.1:"},
		{"the other family", "tcp", "[2001:db8::7]:40008", "172.31.0.2:80", "172.31.0.1:"},
		{"a neighbour's address", "tcp", "172.31.0.77:40009", "172.31.0.2:80", "172.31.0.1:"},
		{"loopback", "tcp", "198.51.100.7:40010", "127.0.0.1:9090", "127.0.0.1:"},
		{"a container that cannot answer", "tcp", "198.51.100.7:40011", "172.31.0.3:80", "172.31.0.1:"},
		{"and again, at once", "tcp", "198.51.100.7:40012", "172.31.0.3:80", "172.31.0.1:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			began := time.Now()
			if got := heard(t, dial(t, tt.protocol, tt.from, tt.to)); !strings.HasPrefix(got, tt.want) {
				t.Errorf("it sees %s, want %s", got, tt.want)
			}
			if took := time.Since(began); took > time.Second && !strings.Contains(tt.name, "cannot") {
				t.Errorf("it took %v", took)
			}
		})
	}
	t.Run("one client's port twice", func(t *testing.T) {
		first, second := dial(t, "tcp", "198.51.100.8:50000", "172.31.0.2:80"), dial(t, "tcp", "198.51.100.8:50000", "172.31.0.2:80")
		a, b := heard(t, first), heard(t, second)
		if a == b || !strings.HasPrefix(a, "198.51.100.8:") || !strings.HasPrefix(b, "198.51.100.8:") {
			t.Errorf("it sees %s and %s", a, b)
		}
	})
	t.Run("refused", func(t *testing.T) {
		_, err := clients.dial(t.Context(), "tcp", netip.MustParseAddrPort("198.51.100.7:40013"), netip.MustParseAddrPort("172.31.0.2:81"))
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("dial: %v", err)
		}
	})
	t.Run("much, both ways", func(t *testing.T) {
		conn := dial(t, "tcp", "198.51.100.7:40014", "172.31.0.2:80")
		heard(t, conn)
		const size = 8 << 20
		go func() { _, _ = conn.Write(make([]byte, size)) }()
		if _, err := io.ReadFull(conn, make([]byte, size)); err != nil {
			t.Error(err)
		}
	})
}

func TestClientsThatCannot(t *testing.T) {
	tries := 0
	clients := NewClients(slog.New(slog.DiscardHandler), func(context.Context, string, ...string) error {
		tries++
		return errors.New("nft is broken")
	})
	clients.dir = t.TempDir()
	clients.Set(true)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := netip.MustParseAddrPort(l.Addr().String()).Port()
	for range 2 {
		conn, err := clients.dial(t.Context(), "tcp", netip.MustParseAddrPort("198.51.100.7:1"), netip.AddrPortFrom(netip.IPv4Unspecified(), port))
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	if tries != 1 {
		t.Errorf("nft was run %d times", tries)
	}
}
