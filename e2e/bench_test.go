//go:build linux

package e2e

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkStart is the time from launching `coracle start` to the first ping that is answered through the machine's Docker
// socket: cold (QEMU is launched anew), with the image and a used data disk in place.
func BenchmarkStart(b *testing.B) {
	needVM(b)
	u := newUser(b)
	u.ok(b, "coracle", "start")
	u.ok(b, "coracle", "stop")
	for b.Loop() {
		u.ok(b, "coracle", "start")
		b.StopTimer()
		u.ok(b, "coracle", "stop")
		b.StartTimer()
	}
}

// BenchmarkEngine measures one running machine from the host.
func BenchmarkEngine(b *testing.B) {
	needVM(b)
	u := newUser(b)
	u.ok(b, "coracle", "start")
	u.toolboxImage(b)
	sock := filepath.Join(u.home, "machines/default/docker.sock")
	ping := func(b *testing.B, keepAlive bool) {
		t := &http.Transport{DisableKeepAlives: !keepAlive, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", sock)
		}}
		defer t.CloseIdleConnections()
		c := &http.Client{Transport: t, Timeout: time.Minute}
		for b.Loop() {
			resp, err := c.Get("http://docker/_ping")
			if err != nil {
				b.Fatal(err)
			}
			resp.Body.Close()
		}
	}
	b.Run("ping", func(b *testing.B) { ping(b, false) })
	b.Run("ping-keepalive", func(b *testing.B) { ping(b, true) })
	b.Run("run", func(b *testing.B) {
		for b.Loop() {
			u.docker(b, "run", "--rm", "toolbox", "echo", "done")
		}
	})
	b.Run("exec", func(b *testing.B) {
		id := u.docker(b, "run", "-d", "toolbox", "hold")
		defer u.docker(b, "rm", "-f", id)
		for b.Loop() {
			u.docker(b, "exec", id, "/toolbox", "echo", "done")
		}
	})
}
