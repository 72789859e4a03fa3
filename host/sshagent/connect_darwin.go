package sshagent

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// connect connects and then looks at who answers: nothing was said to it yet.
func connect(ctx context.Context, socket string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	if err := ours(conn.(*net.UnixConn)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func ours(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Xucred
	var perr error
	if err := raw.Control(func(fd uintptr) { peer, perr = unix.GetsockoptXucred(int(fd), unix.SOL_LOCAL, unix.LOCAL_PEERCRED) }); err != nil {
		return err
	}
	if perr != nil {
		return fmt.Errorf("ask who answers: %w", perr)
	}
	if int(peer.Uid) != unix.Geteuid() {
		return fmt.Errorf("it belongs to user %d", peer.Uid)
	}
	return nil
}
