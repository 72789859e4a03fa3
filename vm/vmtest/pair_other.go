//go:build !unix

package vmtest

import (
	"fmt"
	"net"
)

// pair is two ends of one stream, each with CloseWrite: over loopback, where there are no socket pairs.
func pair() (net.Conn, net.Conn, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	b, err := l.Accept()
	if err != nil {
		a.Close()
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return a, b, nil
}
