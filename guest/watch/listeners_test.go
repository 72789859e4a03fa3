//go:build linux

package watch

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// listenFor goes into the control group that is its first word, and listens on the others while its input lasts.
func listenFor(words []string) {
	if err := os.WriteFile(filepath.Join(words[0], "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0); err != nil {
		fmt.Println(err)
		return
	}
	for _, w := range words[1:] {
		network, address, _ := strings.Cut(w, ",")
		var err error
		if strings.HasPrefix(network, "tcp") {
			_, err = net.Listen(network, address)
		} else {
			_, err = net.ListenPacket(network, address)
		}
		if err != nil {
			fmt.Println(err)
			return
		}
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// emitted keeps the latest set.
type emitted struct {
	mu   sync.Mutex
	list []api.Forward
}

func (e *emitted) set(list []api.Forward) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = list
}

func (e *emitted) text() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for _, f := range e.list {
		out = append(out, fmt.Sprintf("%s %s:%d > %s", f.Protocol, f.Address, f.Port, f.To))
	}
	slices.Sort(out)
	return out
}

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long for %s", what)
		}
	}
}

// groupRoot is where version 2 of the control groups is mounted.
func groupRoot(t *testing.T) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(dir + "/cgroup.procs"); err == nil {
			return dir
		}
	}
	t.Skip("needs control groups of version 2: mount -t cgroup2 none /sys/fs/cgroup/unified")
	return ""
}

func TestListeners(t *testing.T) {
	if !inside(t) {
		return
	}
	shell(t, "ip link set lo up")
	root := groupRoot(t)
	group := func(name string) string {
		dir := filepath.Join(root, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Skipf("needs control groups: %v", err)
		}
		t.Cleanup(func() { os.Remove(dir) })
		return dir
	}
	engine, docker := group("watchtest-engine"), group("watchtest-docker")
	below := group("watchtest-engine/below")
	listen := func(words ...string) *exec.Cmd {
		cmd := as(t, append([]string{"listen"}, words...)...)
		in, _ := cmd.StdinPipe()
		out, _ := cmd.StdoutPipe()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); _ = cmd.Wait() })
		b := make([]byte, 200)
		if n, _ := out.Read(b); string(b[:n]) != "ready\n" {
			t.Fatalf("listener said %q", b[:n])
		}
		return cmd
	}
	tracefs := t.TempDir()
	t.Cleanup(func() { _ = unix.Unmount(tracefs, unix.MNT_DETACH) })
	var set emitted
	ports := NewPorts(slog.New(slog.NewTextHandler(os.Stderr, nil)), set.set)
	l := NewListeners(ports.log, ports)
	l.tracefs, l.own = tracefs, []string{root, engine}
	hears := true
	if tr, err := openTrace(tracefs); err != nil {
		t.Logf("this kernel tells nothing: %v", err)
		hears = false
	} else {
		tr.close()
	}
	before := listen(docker, "tcp4,127.0.0.1:9000", "udp4,0.0.0.0:9001")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	first := []string{"tcp 127.0.0.1:9000 > 127.0.0.1:9000", "udp 0.0.0.0:9001 > 0.0.0.0:9001"}
	waitFor(t, "what listened before", func() bool { return slices.Equal(set.text(), first) })

	if hears {
		listen(engine, "tcp4,0.0.0.0:9010")
		listen(below, "tcp4,0.0.0.0:9011")
		listen(docker, "udp4,0.0.0.0:40000", "tcp,:9020", "tcp6,[::]:9021", "tcp6,[::1]:9022", "udp6,[::]:9023")
		// Go's tcp6 and udp6 sockets take IPv6 alone, its tcp ones both.
		want := append([]string{"tcp :9020 > 0.0.0.0:9020", "tcp :::9021 > [::]:9021", "tcp ::1:9022 > [::1]:9022", "udp :::9023 > [::]:9023"}, first...)
		slices.Sort(want)
		waitFor(t, "what listens now", func() bool { return slices.Equal(set.text(), want) })
	}
	_ = before.Process.Kill()
	waitFor(t, "the end of the first", func() bool {
		return !slices.ContainsFunc(set.text(), func(s string) bool { return strings.Contains(s, ":9001") })
	})
	cancel()
	wg.Wait()
	if _, err := os.Stat(filepath.Join(tracefs, "instances", "coracle")); err == nil {
		t.Error("the tracer's instance is left behind")
	}
}

func TestParseSocket(t *testing.T) {
	message := func(family byte, addr string, attrs []byte) []byte {
		b := make([]byte, diagSize)
		b[0] = family
		binary.BigEndian.PutUint16(b[4:], 8080)
		copy(b[8:], netip.MustParseAddr(addr).AsSlice())
		return append(b, attrs...)
	}
	only6 := attribute(nil, diagOnly6, []byte{1})
	group := attribute(nil, diagGroup, binary.NativeEndian.AppendUint64(nil, 77))
	for _, tt := range []struct {
		b    []byte
		want string
	}{
		{message(unix.AF_INET, "0.0.0.0", group), "{tcp 0.0.0.0 0.0.0.0:8080} 77 true"},
		{message(unix.AF_INET6, "::", append(only6, group...)), "{tcp :: [::]:8080} 77 true"},
		{message(unix.AF_INET6, "::", group), "{tcp  0.0.0.0:8080} 77 true"},
		{message(unix.AF_INET, "127.0.0.53", nil), "{tcp 127.0.0.1 127.0.0.53:8080} 0 true"},
		{message(unix.AF_INET6, "::1", nil), "{tcp ::1 [::1]:8080} 0 true"},
		{message(unix.AF_INET, "172.17.0.1", nil), "{tcp  172.17.0.1:8080} 0 false"},
	} {
		s, ok := parseSocket(tt.b)
		f, public := s.forward("tcp")
		if got := fmt.Sprintf("{%s %s %s} %d %v", f.Protocol, f.Address, f.To, s.group, public); !ok || got != tt.want {
			t.Errorf("%s, want %s", got, tt.want)
		}
	}
	if _, ok := parseSocket(make([]byte, diagSize)); ok {
		t.Error("took a socket without a port")
	}
}

func FuzzMessages(f *testing.F) {
	b := make([]byte, unix.SizeofNlMsghdr+diagSize)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint32(b[8:], 1)
	f.Add(append(b, attribute(nil, diagGroup, make([]byte, 8))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseMessages(b, 1, func(body []byte) error {
			s, ok := parseSocket(body)
			if ok && s.at.Port() == 0 {
				t.Error("a socket without a port")
			}
			s.forward("udp")
			return nil
		})
	})
}

func TestSetListeners(t *testing.T) {
	var set emitted
	p := NewPorts(slog.New(slog.DiscardHandler), set.set)
	a := api.Forward{Protocol: "tcp", Port: 80, To: "0.0.0.0:80"}
	b := api.Forward{Protocol: "udp", Port: 53, To: "0.0.0.0:53"}
	p.setListeners([]api.Forward{a, b})
	p.setListeners([]api.Forward{b})
	p.setListeners([]api.Forward{b, a})
	b.ID, a.ID = 2, 3
	if got, want := p.List(), []api.Forward{b, a}; !cmp.Equal(got, want) || !cmp.Equal(set.list, want) {
		t.Errorf("the set is %v, and told as %v; want %v", got, set.list, want)
	}
	if !p.leads("tcp", netip.MustParseAddrPort("0.0.0.0:80")) || p.leads("udp", netip.MustParseAddrPort("0.0.0.0:80")) {
		t.Error("leads where nobody was published, or not where somebody was")
	}
	set.list = nil
	p.setListeners([]api.Forward{a, b})
	if set.list != nil {
		t.Error("told of nothing new")
	}
}
