//go:build !linux && !darwin

package sshagent

import (
	"context"
	"fmt"
	"net"
	"runtime"
)

// connect is for systems whose agents answer on something else than a unix socket.
func connect(context.Context, string) (net.Conn, error) {
	return nil, fmt.Errorf("an agent on %s cannot be reached", runtime.GOOS)
}
