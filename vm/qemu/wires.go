//go:build linux

package qemu

import (
	"context"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vhostuser/fs"
	"github.com/coracle-engine/coracle/vm/vhostuser/vsock"
)

// firstFile is the number that a child gives the first file it inherits beside the standard three.
const firstFile = 3

// wires are the socket pairs between us and a QEMU that is about to be launched.
type wires struct {
	monitor, vsock *net.UnixConn
	files, cable   *net.UnixConn // nil where the machine has no use for them
	far            []*os.File    // QEMU's ends, in the order that it inherits them
}

// lay makes the socket pairs that l wants, and tells it the numbers of QEMU's ends.
func (l *launch) lay() (*wires, error) {
	w := &wires{}
	for _, p := range []struct {
		want   bool
		near   **net.UnixConn
		number *int
	}{
		{true, &w.monitor, &l.monitor}, {true, &w.vsock, &l.vsock},
		{l.cfg.FileSystem != nil, &w.files, &l.files}, {l.cfg.Network.Frames != nil, &w.cable, &l.cable},
	} {
		if !p.want {
			continue
		}
		near, far, err := socketPair()
		if err != nil {
			w.release()
			w.cut()
			return nil, err
		}
		*p.near, *p.number = near, firstFile+len(w.far)
		w.far = append(w.far, far)
	}
	return w, nil
}

// release closes QEMU's ends, of which it has its own by then.
func (w *wires) release() {
	for _, f := range w.far {
		f.Close()
	}
}

// cut closes our ends.
func (w *wires) cut() {
	for _, c := range []*net.UnixConn{w.monitor, w.vsock, w.files, w.cable} {
		if c != nil {
			c.Close()
		}
	}
}

// serve starts in parts what answers on our ends, but for the monitor's. Each ends with ctx or with QEMU, and closes its end.
func (w *wires) serve(ctx context.Context, parts *sync.WaitGroup, cfg vm.Config, device *vsock.Device, log *slog.Logger) {
	start := func(what string, f func() error) {
		parts.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				log.Warn(what+" ended", "error", err)
			}
		})
	}
	start("the vsock device", func() error { return device.Serve(ctx, w.vsock) })
	if w.files != nil {
		start("the file-system device", func() error { return fs.Serve(ctx, w.files, cfg.FileSystem, log) })
	}
	if w.cable != nil {
		start("the network", func() error {
			defer w.cable.Close()
			return cfg.Network.Frames(ctx, w.cable)
		})
	}
}
