//go:build linux

package qemu

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"testing"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/forward"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

// BenchmarkPort measures published ports beside QEMU's own forwarding, in the manner of BenchmarkStreams: a client of this
// host's, a TCP server in the guest, and between them either host/forward, a vsock stream and guest/watch, or QEMU's network
// for users. Both lead to the same program of one guest; beside them is what a bare vsock stream into it costs.
func BenchmarkPort(b *testing.B) {
	dir := imageDir(b, runtime.GOARCH)
	initrd := testInitrd(b, dir, runtime.GOARCH)
	addNetwork(b, dir, initrd)
	m := bootGuest(b, dir, initrd)
	ports := []uint32{vmtest.PortEcho, vmtest.PortCount, vmtest.PortZeros}
	compare(b, []way{
		{"published", publish(b, m, ports...), 0}, {"vsock", m.Dial, 0}, {"hostfwd", forwarded(b, m, ports...), clients*times - 1},
	})
}

// publish has host/forward publish the guest's TCP ports.
func publish(b *testing.B, m *machine, ports ...uint32) dialer {
	b.Helper()
	f, err := forward.New(forward.Config{Log: vmtest.Logger(false), Dial: m.Dial, Address: "127.0.0.1"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	addresses := map[uint32]string{}
	var list []guestapi.Forward
	for i, port := range ports {
		to := fmt.Sprintf("127.0.0.1:%d", port)
		if _, err := vmtest.AskRun(b.Context(), m, "publish", to); err != nil {
			b.Fatal(err)
		}
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		addresses[port] = l.Addr().String()
		l.Close()
		list = append(list, guestapi.Forward{
			ID: uint64(i + 1), Protocol: "tcp", Address: "127.0.0.1", Port: uint16(l.Addr().(*net.TCPAddr).Port), To: to,
		})
	}
	for _, p := range f.Set(b.Context(), list) {
		if p.Error != "" {
			b.Fatal(p.Error)
		}
	}
	return func(ctx context.Context, port uint32) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp4", addresses[port])
	}
}
