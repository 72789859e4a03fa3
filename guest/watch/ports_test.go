//go:build linux

package watch

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/google/go-cmp/cmp"
)

// host answers sets as a host does: port 81 is taken there, port 82 it says nothing of.
type host struct {
	emitted
	ports *Ports
	wg    sync.WaitGroup
}

func newHost(t *testing.T) *host {
	h := &host{}
	h.ports = NewPorts(slog.New(slog.DiscardHandler), func(list []api.Forward) {
		h.set(list)
		h.wg.Go(func() {
			var out []api.Publication
			for _, f := range list {
				switch f.Port {
				case 81:
					out = append(out, api.Publication{ID: f.ID, Error: "failed to bind host port 127.0.0.1:81/tcp: address already in use"})
				case 82:
				default:
					out = append(out, api.Publication{ID: f.ID})
				}
			}
			h.ports.Published(out)
		})
	})
	t.Cleanup(h.wg.Wait)
	return h
}

// serve has h's ports answer at a socket.
func (h *host) serve(t *testing.T) string {
	t.Helper()
	path := socketPath(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.ports.Serve(ctx, l)
	}()
	t.Cleanup(func() { cancel(); <-done })
	return path
}

func (h *host) empty() bool { return len(h.text()) == 0 }

func TestPublish(t *testing.T) {
	needRoot(t)
	h := newHost(t)
	path := h.serve(t)
	f := api.Forward{Protocol: "tcp", Address: "0.0.0.0", Port: 80, To: "172.17.0.2:80"}
	conn, err := ask(t.Context(), path, f)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := h.text(), []string{"tcp 0.0.0.0:80 > 172.17.0.2:80"}; !cmp.Equal(got, want) {
		t.Errorf("the set is %q", got)
	}
	f.Port = 81
	if _, err := ask(t.Context(), path, f); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("a taken port: %v", err)
	}
	f.Port = 82
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := ask(ctx, path, f); err == nil {
		t.Error("a port that the host says nothing of is published")
	}
	waitFor(t, "the failed ones to go", func() bool { return len(h.text()) == 1 })
	conn.Close()
	waitFor(t, "the forward to end with its program", h.empty)

	for _, bad := range []string{"", "{", `{"port":"x"}`, strings.Repeat(" ", maxRequest+1) + "{}"} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, bad)
		_ = c.(*net.UnixConn).CloseWrite()
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if b, err := io.ReadAll(c); len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%.20q was answered %q, %v", bad, b, err)
		}
		c.Close()
	}
}

// Test 3 of the attacks (CVE-2026-53657, CVE-2026-112917): neither another user nor a container with the socket in its hands
// can publish.
func TestStrangersCannotPublish(t *testing.T) {
	needRoot(t)
	h := newHost(t)
	path := h.serve(t)
	for name, attr := range map[string]*syscall.SysProcAttr{
		"another user": {Credential: &syscall.Credential{Uid: 65534, Gid: 65534}},
		"a container":  {Cloneflags: syscall.CLONE_NEWNS},
	} {
		for _, open := range []bool{false, true} {
			if open { // as a careless mount would
				if err := errors.Join(os.Chmod(path, 0o666), os.Chmod(path[:strings.LastIndex(path, "/")], 0o755)); err != nil {
					t.Fatal(err)
				}
			}
			cmd := as(t, "ask", path)
			cmd.Path = copySelf(t)
			cmd.SysProcAttr = attr
			out, err := cmd.Output()
			if strings.Contains(string(out), "{") || !h.empty() {
				t.Errorf("%s published: %q, %v", name, out, err)
			}
		}
	}
}

// copySelf is this program where every user can run it.
func copySelf(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "watch")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(dir+"/t", b, 0o755)); err != nil {
		t.Fatal(err)
	}
	return dir + "/t"
}

// dockerProxy starts the program as dockerd does and returns what it reports.
func dockerProxy(t *testing.T, path string, listener *os.File, args ...string) (cmd *exec.Cmd, report string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd = as(t, "docker-proxy", path)
	cmd.Args = append(cmd.Args, args...)
	cmd.ExtraFiles = []*os.File{w}
	if listener != nil {
		cmd.Args = append(cmd.Args, "-use-listen-fd")
		cmd.ExtraFiles = append(cmd.ExtraFiles, listener)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	_ = r.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return cmd, string(b)
}

func TestProxy(t *testing.T) {
	needRoot(t)
	h := newHost(t)
	path := h.serve(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // says what it got when the client has ended
				b, _ := io.ReadAll(c)
				_, _ = c.Write(append([]byte("got "), b...))
				c.Close()
			}()
		}
	}()
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	go func() {
		buf := make([]byte, 2000)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(buf[:n], from)
		}
	}()
	arguments := func(protocol, port, to string) []string {
		target := netip.MustParseAddrPort(to)
		return []string{"-proto", protocol, "-host-ip", "0.0.0.0", "-host-port", port, "-container-ip", target.Addr().String(),
			"-container-port", to[strings.LastIndex(to, ":")+1:]}
	}
	t.Run("tcp", func(t *testing.T) {
		front, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		file, _ := front.(*net.TCPListener).File()
		cmd, report := dockerProxy(t, path, file, arguments("tcp", "80", l.Addr().String())...)
		file.Close()
		address := front.Addr().String()
		front.Close()
		if report != "0\n" {
			t.Fatalf("it reported %q", report)
		}
		if got := h.text(); len(got) != 1 || !strings.HasPrefix(got[0], "tcp 0.0.0.0:80 > 127.0.0.1:") {
			t.Errorf("the set is %q", got)
		}
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, "this")
		_ = c.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); string(b) != "got this" {
			t.Errorf("through it came %q, %v", b, err)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("it ended with %v", err)
		}
		waitFor(t, "the forward to end", h.empty)
	})
	t.Run("udp, killed", func(t *testing.T) {
		front, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		file, _ := front.(*net.UDPConn).File()
		cmd, report := dockerProxy(t, path, file, arguments("udp", "53", udp.LocalAddr().String())...)
		file.Close()
		address := front.LocalAddr().String()
		front.Close()
		if report != "0\n" {
			t.Fatalf("it reported %q", report)
		}
		c, err := net.Dial("udp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = io.WriteString(c, "name?")
		b := make([]byte, 100)
		if n, err := c.Read(b); string(b[:n]) != "name?" {
			t.Errorf("through it came %q, %v", b[:n], err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		waitFor(t, "the forward to end", h.empty)
	})
	for _, tt := range []struct{ name, protocol, port, path, want string }{
		{"taken", "tcp", "81", path, "1\nfailed to bind host port 127.0.0.1:81/tcp: address already in use"},
		{"sctp", "sctp", "80", path, "1\nSCTP ports cannot be published"},
		{"no agent", "tcp", "80", path + "x", "1\nreach the machine's agent"},
		{"nonsense", "tcp", "x", path, "1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			front, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer front.Close()
			file, _ := front.(*net.TCPListener).File()
			defer file.Close()
			cmd, report := dockerProxy(t, tt.path, file, arguments(tt.protocol, tt.port, l.Addr().String())...)
			if err := cmd.Wait(); err == nil || !strings.HasPrefix(report, tt.want) {
				t.Errorf("it reported %q and ended with %v; want %q", report, err, tt.want)
			}
		})
	}
}

// connect is the host's end of a stream, by a socket pair.
func connect(t *testing.T, c *Connections, head api.Connect) *net.UnixConn {
	t.Helper()
	l, err := net.Listen("unix", socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mine, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Serve(t.Context(), theirs)
	}()
	t.Cleanup(func() { mine.Close(); <-done })
	_ = mine.SetDeadline(time.Now().Add(10 * time.Second))
	if err := api.WriteConnect(mine, head); err != nil {
		t.Fatal(err)
	}
	return mine.(*net.UnixConn)
}

func TestConnections(t *testing.T) {
	p := NewPorts(slog.New(slog.DiscardHandler), func([]api.Forward) {})
	c := NewConnections(p.log, p, NewClients(p.log, nil))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	to := l.Addr().String()
	p.setListeners([]api.Forward{{Protocol: "tcp", Port: 80, To: to}, {Protocol: "tcp", Port: 81, To: "127.0.0.1:1"}})
	published := api.Connect{Protocol: "tcp", To: to, From: "198.51.100.7:4000"}
	accept := func(t *testing.T) *net.TCPConn {
		t.Helper()
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		_ = s.SetDeadline(time.Now().Add(10 * time.Second))
		return s.(*net.TCPConn)
	}
	t.Run("half-closes", func(t *testing.T) {
		host := connect(t, c, published)
		container := accept(t)
		_, _ = io.WriteString(host, "question")
		_ = host.CloseWrite()
		if b, err := io.ReadAll(container); string(b) != "question" || err != nil {
			t.Errorf("container read %q, %v", b, err)
		}
		_, _ = io.WriteString(container, "answer")
		_ = container.CloseWrite()
		if b, err := io.ReadAll(host); string(b) != "answer" || err != nil {
			t.Errorf("host read %q, %v", b, err)
		}
	})
	t.Run("host resets", func(t *testing.T) {
		host := connect(t, c, published)
		container := accept(t)
		_, _ = io.WriteString(host, "half a ques")
		_, _ = io.ReadFull(container, make([]byte, 11))
		host.Close()
		if _, err := io.ReadAll(container); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("container read %v, want a reset", err)
		}
	})
	t.Run("container resets", func(t *testing.T) {
		host := connect(t, c, published)
		container := accept(t)
		_ = container.SetLinger(0)
		container.Close()
		if b, err := io.ReadAll(host); len(b) > 0 {
			t.Errorf("host read %q, %v", b, err)
		}
		if _, err := io.WriteString(host, "x"); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("host writes: %v, want a closed stream", err)
		}
	})
	for name, head := range map[string]api.Connect{
		"refused":           {Protocol: "tcp", To: "127.0.0.1:1"},
		"not published":     {Protocol: "tcp", To: "127.0.0.1:22"},
		"another protocol":  {Protocol: "udp", To: to},
		"no protocol of IP": {Protocol: "unix", To: "/run/docker.sock"},
	} {
		t.Run(name, func(t *testing.T) {
			host := connect(t, c, head)
			if b, err := bufio.NewReader(host).ReadByte(); err == nil {
				t.Errorf("host read %q", b)
			}
		})
	}
}
