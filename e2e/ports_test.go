//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestPorts tells what a user meets who publishes ports and lets containers reach out.
func TestPorts(t *testing.T) {
	needVM(t)
	u := newUser(t)
	u.ok(t, "coracle", "start")
	u.toolboxImage(t)
	for _, story := range []struct {
		name string
		f    func(*testing.T, *user)
	}{
		{"open when docker run returns", openAtOnce},
		{"UDP", udpBothFamilies},
		{"a range, a chosen port, a low one", portKinds},
		{"taken", portTaken},
		{"streams end on each side by themselves", halfClose},
		{"a thousand streams at once", thousandStreams},
		{"only where the setting says", portAddress},
		{"the client's address", clientAddress},
		{"host network", hostNetwork},
		{"host.docker.internal", hostAliases},
		{"names", namesOfHost},
		{"registry on the host", registryOnHost},
		{"engine settings without losing containers", engineSettings},
		{"ssh agent", sshAgent},
		{"proxy", proxyReached},
		{"clock", clockAfterSleep},
		{"attack: what answers a container", scanGateway},
		{"attack: vsock by 32-bit calls", vsock32},
		{"attack: what listens on the host", hostListeners},
	} {
		t.Run(story.name, func(t *testing.T) { story.f(t, u) })
	}
}

// publish runs a toolbox container in the background and removes it at the test's end.
func (u *user) publish(tb testing.TB, flags []string, verb ...string) string {
	tb.Helper()
	args := append(append([]string{"run", "-d", "--init"}, flags...), "toolbox")
	id := u.docker(tb, append(args, verb...)...)
	tb.Cleanup(func() { u.run(context.Background(), nil, "docker", "rm", "-f", id) })
	return id
}

func (u *user) listening(tb testing.TB, id string) {
	tb.Helper()
	eventually(tb, 20*time.Second, func() error {
		if got := u.docker(tb, "logs", id); !strings.Contains(got, "listening") {
			return fmt.Errorf("logs: %q", got)
		}
		return nil
	})
}

// freePort is a TCP and UDP port that nobody has now.
func freePort(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func echo(address, text string) error {
	c, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return err
	}
	got, err := io.ReadAll(c)
	if err == nil && string(got) != text {
		err = fmt.Errorf("said %q, heard %q", text, got)
	}
	return err
}

func openAtOnce(t *testing.T, u *user) {
	port := freePort(t)
	id := u.publish(t, []string{"-p", port + ":7"}, "listen", "7")
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), time.Second) // no second attempt
		if err != nil {
			t.Fatalf("docker run returned, and: %v", err)
		}
		c.Close()
	}
	u.listening(t, id)
	for _, host := range []string{"127.0.0.1", "::1", "localhost"} {
		if err := echo(net.JoinHostPort(host, port), "hello"); err != nil {
			t.Errorf("%s: %v", host, err)
		}
	}
	if got := u.docker(t, "port", id); !strings.Contains(got, port) {
		t.Errorf("docker port: %q", got)
	}
	if got := u.ok(t, "coracle", "status"); !strings.Contains(got, port) {
		t.Errorf("coracle status does not tell the port:\n%s", got)
	}
	u.docker(t, "restart", "-t", "0", id)
	eventually(t, 20*time.Second, func() error { return echo("127.0.0.1:"+port, "again") })
	u.docker(t, "rm", "-f", id)
	eventually(t, 5*time.Second, func() error {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
			return errors.New("the port is still open")
		}
		return nil
	})
}

func udpBothFamilies(t *testing.T, u *user) {
	port := freePort(t)
	u.listening(t, u.publish(t, []string{"-p", port + ":7/udp"}, "udp", "7"))
	for _, host := range []string{"127.0.0.1", "::1"} {
		c, err := net.Dial("udp", net.JoinHostPort(host, port))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		buf := make([]byte, 70000)
		for _, size := range []int{0, 1, 1400, 9000} {
			msg := bytes.Repeat([]byte("u"), size)
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := c.Write(msg); err != nil {
				t.Fatal(err)
			}
			n, err := c.Read(buf)
			if _, body, ok := bytes.Cut(buf[:n], []byte(" ")); err != nil || !ok || !bytes.Equal(body, msg) {
				t.Errorf("%s, %d bytes: %d came back, %v", host, size, n, err)
			}
		}
	}
}

func portKinds(t *testing.T, u *user) {
	base, _ := strconv.Atoi(freePort(t))
	ports := fmt.Sprintf("%d-%d", base+1, base+5)
	u.listening(t, u.publish(t, []string{"-p", ports + ":" + ports}, "listen", strconv.Itoa(base+3)))
	if err := echo(fmt.Sprintf("127.0.0.1:%d", base+3), "range"); err != nil {
		t.Error(err)
	}
	id := u.publish(t, []string{"-p", "7"}, "listen", "7")
	u.listening(t, id)
	address, _, _ := strings.Cut(u.docker(t, "port", id, "7/tcp"), "\n")
	_, chosen, _ := net.SplitHostPort(address)
	if err := echo("127.0.0.1:"+chosen, "chosen"); err != nil {
		t.Error(err)
	}
	if os.Getuid() == 0 {
		u.listening(t, u.publish(t, []string{"-p", "127.0.0.1:907:7"}, "listen", "7"))
		if err := echo("127.0.0.1:907", "low"); err != nil {
			t.Error(err)
		}
	}
}

// portTaken: the error is Linux's, says who has it, and leaves nothing behind.
func portTaken(t *testing.T, u *user) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	words := []string{"address already in use", port, filepath.Base(os.Args[0])}
	u.fails(t, 125, words, "docker", "run", "--name", "taken", "-p", port+":7", "toolbox", "listen", "7")
	// Nothing is left of it. (dockerd itself forgets the networks of a container that failed so: it is made anew.)
	u.docker(t, "rm", "taken")
	l.Close()
	u.listening(t, u.publish(t, []string{"-p", port + ":7"}, "listen", "7"))
	if err := echo("127.0.0.1:"+port, "free again"); err != nil {
		t.Error(err)
	}
}

func halfClose(t *testing.T, u *user) {
	port := freePort(t)
	u.listening(t, u.publish(t, []string{"-p", port + ":7"}, "listen", "7"))
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	const size = 4 << 20
	go func() {
		io.CopyN(c, rand.Reader, size)
		c.(*net.TCPConn).CloseWrite()
	}()
	if n, err := io.Copy(io.Discard, c); err != nil || n != size {
		t.Errorf("after our end of file came %d bytes, %v", n, err)
	}
	// A port whose container does not listen resets, as on Linux.
	dead := freePort(t)
	u.publish(t, []string{"-p", dead + ":9"}, "hold")
	d, err := net.Dial("tcp", "127.0.0.1:"+dead)
	if err == nil {
		_ = d.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = d.Read(make([]byte, 1))
		d.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a port that nobody serves: %v", err)
	}
}

// thousandStreams is facts/faults.md row 21: nothing lost, nothing crossed, no descriptor left.
func thousandStreams(t *testing.T, u *user) {
	port := freePort(t)
	u.listening(t, u.publish(t, []string{"-p", port + ":7"}, "listen", "7"))
	if err := echo("127.0.0.1:"+port, "warm"); err != nil {
		t.Fatal(err)
	}
	pid := processes(t, "coracled", u.home)[0]
	files := func() int {
		entries, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		return len(entries)
	}
	before := files()
	var wg sync.WaitGroup
	var bad sync.Map
	for i := range 1000 {
		wg.Go(func() {
			text := strings.Repeat(fmt.Sprintf("stream %d;", i), 2000)
			if err := echo("127.0.0.1:"+port, text); err != nil {
				bad.Store(i, fmt.Sprintf("%.100s", err.Error()))
			}
		})
	}
	wg.Wait()
	n := 0
	bad.Range(func(i, err any) bool {
		if n++; n < 5 {
			t.Errorf("stream %v: %v", i, err)
		}
		return true
	})
	if n > 0 {
		t.Errorf("%d of 1000 streams went wrong", n)
	}
	eventually(t, 10*time.Second, func() error {
		if now := files(); now > before+5 {
			return fmt.Errorf("%d descriptors, %d before", now, before)
		}
		return nil
	})
}

// network is a host of its own in a network namespace, on a cable to this one.
type network struct{ name, ours, theirs string }

func newNetwork(t *testing.T) network {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("makes a network namespace: run as root")
	}
	n := network{fmt.Sprintf("cr%s", freePort(t)), "198.18.7.1", "198.18.7.2"}
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	ip("netns", "add", n.name)
	t.Cleanup(func() {
		exec.Command("ip", "link", "del", n.name).Run() // at once; with its namespace it would go later
		exec.Command("ip", "netns", "del", n.name).Run()
	})
	ip("link", "add", n.name, "type", "veth", "peer", "name", "eth0", "netns", n.name)
	ip("addr", "add", n.ours+"/24", "dev", n.name)
	ip("link", "set", n.name, "up")
	ip("-n", n.name, "addr", "add", n.theirs+"/24", "dev", "eth0")
	ip("-n", n.name, "link", "set", "eth0", "up")
	return n
}

// toolbox runs the toolbox on that host.
func (n network) toolbox(t *testing.T, args ...string) (string, error) {
	t.Helper()
	tool := filepath.Join(t.TempDir(), "toolbox")
	goBuild(t, "amd64", "./e2e/toolbox", tool)
	out, err := exec.Command("ip", append([]string{"netns", "exec", n.name, tool}, args...)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// portAddress: CVE-2025-54388 and its kin. What is published on loopback is not open to others; what names no address goes
// where the setting says.
func portAddress(t *testing.T, u *user) {
	n := newNetwork(t)
	local, plain := freePort(t), freePort(t)
	u.listening(t, u.publish(t, []string{"-p", "127.0.0.1:" + local + ":7"}, "listen", "7"))
	u.listening(t, u.publish(t, []string{"-p", plain + ":7"}, "listen", "7"))
	for _, port := range []string{local, plain} {
		if out, err := n.toolbox(t, "dial", n.ours+":"+port); err == nil {
			t.Errorf("port %s is open to others: %s", port, out)
		}
	}
	u.ok(t, "coracle", "config", "set", "ports.address", "0.0.0.0")
	defer u.ok(t, "coracle", "config", "set", "ports.address", "127.0.0.1")
	if out, err := n.toolbox(t, "dial", n.ours+":"+plain); err != nil {
		t.Errorf("after ports.address became 0.0.0.0: %s", out)
	}
	if out, err := n.toolbox(t, "dial", n.ours+":"+local); err == nil {
		t.Errorf("a port of 127.0.0.1 is open to others: %s", out)
	}
	if err := echo("127.0.0.1:"+plain, "here too"); err != nil {
		t.Error(err)
	}
}

func clientAddress(t *testing.T, u *user) {
	n := newNetwork(t)
	u.ok(t, "coracle", "config", "set", "ports.address", "0.0.0.0")
	defer u.ok(t, "coracle", "config", "set", "ports.address", "127.0.0.1")
	port := freePort(t)
	u.listening(t, u.publish(t, []string{"-p", port + ":7"}, "who", "7"))
	for _, test := range []struct {
		setting string
		want    bool
	}{{"true", true}, {"false", false}} {
		u.ok(t, "coracle", "config", "set", "ports.client-address", test.setting)
		for range 3 {
			got, err := n.toolbox(t, "hear", n.ours+":"+port)
			if err != nil || strings.HasPrefix(got, n.theirs+":") != test.want {
				t.Errorf("with ports.client-address %s the container sees %q, %v", test.setting, got, err)
			}
		}
	}
	u.ok(t, "coracle", "config", "set", "ports.client-address", "true")
}

func hostNetwork(t *testing.T, u *user) {
	port := freePort(t)
	id := u.publish(t, []string{"--network", "host"}, "listen", port)
	u.listening(t, id)
	eventually(t, 5*time.Second, func() error { return echo("127.0.0.1:"+port, "host network") })
	u.docker(t, "rm", "-f", id)
	eventually(t, 5*time.Second, func() error {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
			return errors.New("the port is still open")
		}
		return nil
	})
}

func hostAliases(t *testing.T, u *user) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "the host's loopback") })}
	go s.Serve(l)
	defer s.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	url := "http://host.docker.internal:" + port
	if got := u.docker(t, "run", "--rm", "toolbox", "get", url); got != "the host's loopback" {
		t.Errorf("got %q", got)
	}
	if got := u.docker(t, "run", "--rm", "--add-host", "me:host-gateway", "toolbox", "get", "http://me:"+port); got != "the host's loopback" {
		t.Errorf("by host-gateway: %q", got)
	}
	u.ok(t, "coracle", "config", "set", "network.loopback", "false")
	u.fails(t, 1, []string{"refused"}, "docker", "run", "--rm", "toolbox", "get", url)
	u.ok(t, "coracle", "config", "set", "network.loopback", "true")
	if got := u.docker(t, "run", "--rm", "toolbox", "get", url); got != "the host's loopback" {
		t.Errorf("after it was allowed again: %q", got)
	}
}

func namesOfHost(t *testing.T, u *user) {
	for _, name := range []string{"host.docker.internal", "gateway.docker.internal"} {
		if got := u.docker(t, "run", "--rm", "toolbox", "resolve", name); !strings.HasPrefix(got, "192.168.65.") {
			t.Errorf("%s is %q", name, got)
		}
	}
	const name = "coracle-e2e-name.test"
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil || os.Getuid() != 0 {
		t.Skip("adds a name to /etc/hosts: run as root")
	}
	defer os.WriteFile("/etc/hosts", hosts, 0o644)
	if err := os.WriteFile("/etc/hosts", append(bytes.Clone(hosts), "\n198.18.9.9 "+name+"\n"...), 0o644); err != nil {
		t.Skip(err)
	}
	eventually(t, 10*time.Second, func() error { // Go looks at the file every five seconds
		if r := u.run(t.Context(), nil, "docker", "run", "--rm", "toolbox", "resolve", name); strings.TrimSpace(r.stdout) != "198.18.9.9" {
			return fmt.Errorf("%s is %s", name, r)
		}
		return nil
	})
	u.fails(t, 1, []string{"no such host"}, "docker", "run", "--rm", "toolbox", "resolve", "no-such-name.invalid")
}

func engineSettings(t *testing.T, u *user) {
	id := u.docker(t, "run", "-d", "toolbox", "hold")
	defer u.docker(t, "rm", "-f", id)
	started := u.docker(t, "inspect", "-f", "{{.State.StartedAt}}", id)
	u.ok(t, "coracle", "config", "add", "engine.registry-mirrors", "http://mirror.invalid:5000")
	if got := u.docker(t, "info", "-f", "{{.RegistryConfig.Mirrors}}"); !strings.Contains(got, "mirror.invalid") {
		t.Errorf("mirrors are %s", got)
	}
	u.ok(t, "coracle", "config", "remove", "engine.registry-mirrors", "http://mirror.invalid:5000")
	u.ok(t, "coracle", "config", "set", "engine.log-driver", "local") // needs a restart of dockerd
	if got := u.docker(t, "info", "-f", "{{.LoggingDriver}}"); got != "local" {
		t.Errorf("log driver is %s", got)
	}
	u.fails(t, 1, []string{"no-such-runtime"}, "coracle", "config", "set", "engine.default-runtime", "no-such-runtime")
	if got := u.docker(t, "info", "-f", "{{.LoggingDriver}}"); got != "local" {
		t.Errorf("after a refused change the log driver is %s", got)
	}
	u.fails(t, 1, []string{"hosts"}, "coracle", "config", "set", "engine.hosts", "tcp://0.0.0.0:2375")
	u.ok(t, "coracle", "config", "remove", "engine.log-driver")
	if got := u.docker(t, "inspect", "-f", "{{.State.Running}} {{.State.StartedAt}}", id); got != "true "+started {
		t.Errorf("the container was lost: %s, started %s", got, started)
	}
}
