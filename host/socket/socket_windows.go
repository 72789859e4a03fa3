package socket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
)

// Dial is to connect to a named pipe.
func Dial(_ context.Context, path string) (net.Conn, error) {
	return nil, fmt.Errorf("dial %s: local sockets on %s: %w", path, runtime.GOOS, errors.ErrUnsupported)
}

// Listen is to make a named pipe.
func Listen(path string) (net.Listener, error) {
	return nil, fmt.Errorf("listen on %s: local sockets on %s: %w", path, runtime.GOOS, errors.ErrUnsupported)
}
