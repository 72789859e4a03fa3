//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/guest/relay"
)

const (
	sshDialTime = 10 * time.Second // for the host to take a connection
	maxSSH      = 64               // connections at once
)

// sshAgent is the socket by which containers reach the user's ssh agent: each connection to it is one to the host. Any
// container that the socket is mounted into may use it, whoever it runs as (its mode is 0666, as users of images other than
// root need it); to have it mounted is to be trusted with the agent. Nothing else is in the directory.
type sshAgent struct {
	path string
	dial func(ctx context.Context) (net.Conn, error) // a greeted stream of api.PortSSH
	log  *slog.Logger

	mu     sync.Mutex
	end    context.CancelFunc // nil while there is no socket
	served chan struct{}      // closed when all of it has ended
}

// set makes the socket, or removes it with all connections.
func (s *sshAgent) set(on bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if on == (s.end != nil) {
		return nil
	}
	if !on {
		s.end()
		<-s.served
		s.end = nil
		return nil
	}
	l, err := listenForAll(s.path)
	if err != nil {
		return fmt.Errorf("make socket of the ssh agent: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = streams(ctx, l, maxSSH, s.serve) // it ends with ctx
	}()
	s.end, s.served = cancel, served
	return nil
}

func listenForAll(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func (s *sshAgent) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	dial, cancel := context.WithTimeout(ctx, sshDialTime)
	defer cancel()
	host, err := s.dial(dial)
	if err != nil {
		s.log.Warn("a container asks for the user's ssh agent, and the host does not take the connection", "err", err)
		return
	}
	theirs, ok := conn.(relay.Conn)
	ours, ok2 := host.(relay.Conn)
	if !ok || !ok2 {
		host.Close()
		s.log.Error("carry ssh agent", "err", "a connection without half-close")
		return
	}
	if err := relay.Pipe(ctx, theirs, ours); err != nil {
		s.log.Debug("connection to the user's ssh agent", "err", err)
	}
}
