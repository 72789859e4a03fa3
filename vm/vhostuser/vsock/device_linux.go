package vsock

import (
	"context"
	"errors"
	"log/slog"
	"net"
)

// Device is the vsock device of one guest. It outlives the hypervisor: each Serve is one front end's connection.
type Device struct {
	cid uint64
	log *slog.Logger
}

// New makes a device that tells its guest the context id guestCID (at least 3).
func New(guestCID uint64, log *slog.Logger) *Device { return &Device{cid: guestCID, log: log} }

// Serve runs the device for one front end, until the front end disconnects (nil), ctx ends or the device is closed. It
// closes conn. All streams end with it; the device can serve the next front end afterwards, one at a time.
func (d *Device) Serve(ctx context.Context, conn *net.UnixConn) error {
	return errors.New("serve vsock device: not written yet")
}

// Dial opens a stream to a port of the guest. It waits for the guest's driver, bounded by ctx; a port that nobody listens
// on is an error of class vm.ErrRefused. The connection has CloseWrite.
func (d *Device) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return nil, errors.New("dial guest: not written yet")
}

// Listen accepts streams that the guest opens to a port of the host (CID 2). It works before and between front ends. The
// error is of class vm.ErrPortInUse where the port is taken. Accepted connections have CloseWrite.
func (d *Device) Listen(port uint32) (net.Listener, error) {
	return nil, errors.New("listen on vsock: not written yet")
}

// Close ends everything: Serve, every stream, every listener. It may be called twice.
func (d *Device) Close() error { return nil }
