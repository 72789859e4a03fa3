//go:build !linux

package share

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
)

// Server answers nothing on this system.
type Server struct{}

// New fails with errors.ErrUnsupported.
func New(Config) (*Server, error) {
	return nil, fmt.Errorf("share directories on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// SetShares fails with errors.ErrUnsupported.
func (*Server) SetShares([]Share) error { return errors.ErrUnsupported }

// Serve answers nothing.
func (*Server) Serve(in, out [][]byte) int { return 0 }

// Reset does nothing.
func (*Server) Reset() {}

// Replay fails with errors.ErrUnsupported.
func (*Server) Replay(context.Context, func(context.Context) (net.Conn, error)) error {
	return errors.ErrUnsupported
}

// Close does nothing.
func (*Server) Close() error { return nil }
