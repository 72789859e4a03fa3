package dockerproxy_test

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/host/dockerproxy"
)

// mode is a way in which a stream becomes one of bytes that nobody reads.
type mode struct {
	name     string
	policy   dockerproxy.Policy
	ask, say string // what client and engine say before; empty: nothing
}

var modes = []mode{
	{name: "unread"},
	{
		name: "upgraded", policy: &dockerproxy.Shares{},
		ask: "POST /v1.47/containers/x/attach?stream=1 HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
		say: "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
	},
	{
		name: "taken over", policy: &dockerproxy.Shares{}, // without Upgrade, as old clients ask
		ask: "POST /exec/x/start HTTP/1.1\r\nHost: docker\r\nContent-Length: 2\r\n\r\n{}",
		say: "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n",
	},
}

// inModes runs a test in each mode: what holds for a stream must hold for one that was HTTP before.
func inModes(t *testing.T, test func(t *testing.T, m mode)) {
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) { test(t, m) })
	}
}

func (m mode) start(t testing.TB, engine func(*net.UnixConn)) string {
	t.Helper()
	return startWith(t, m.policy, func(c *net.UnixConn) {
		if _, err := io.ReadFull(c, make([]byte, len(m.ask))); err != nil {
			return
		}
		io.WriteString(c, m.say)
		engine(c)
	})
}

func (m mode) dial(path string) (*net.UnixConn, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(2 * patience))
	io.WriteString(c, m.ask)
	if _, err := io.ReadFull(c, make([]byte, len(m.say))); err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

func (m mode) connect(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	c, err := m.dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
