//go:build linux

package watch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/sys/unix"
)

// SocketPath is where docker-proxy programs reach the agent. A connection's life is its forward's.
const SocketPath = "/run/coracle/ports.sock"

const (
	askTime    = 5 * time.Second // for a program to say what it wants
	maxRequest = 1 << 10         // bytes
)

// answer is what a docker-proxy program hears, as one line of JSON, once.
type answer struct {
	Error string `json:"error,omitempty"`
}

// Listen makes the socket at path, for root alone.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make socket for published ports: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make socket for published ports: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make socket for published ports: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("make socket for published ports: %w", err)
	}
	return l, nil
}

// Serve answers docker-proxy programs on l until ctx ends. It closes l.
func (p *Ports) Serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	slots := make(chan struct{}, maxForwards+16)
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("accept docker-proxy: %w", err)
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			conn.Close()
			return ctx.Err()
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			if err := p.serve(ctx, conn); err != nil {
				p.log.Warn("serve docker-proxy", "err", err)
			}
		})
	}
}

// serve holds one program's forward while its connection lives.
func (p *Ports) serve(ctx context.Context, conn *net.UnixConn) error {
	if err := admit(conn); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(askTime)); err != nil {
		return err
	}
	var f api.Forward
	if err := json.NewDecoder(io.LimitReader(conn, maxRequest)).Decode(&f); err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { // nothing more comes, until the program ends
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	})
	defer conn.Close()
	release, err := p.Publish(ctx, f)
	var a answer
	if err != nil {
		a.Error = err.Error()
	}
	if err := json.NewEncoder(conn).Encode(a); err != nil {
		if release != nil {
			release()
		}
		return nil // the program has ended meanwhile
	}
	if release != nil {
		<-ctx.Done()
		release()
	}
	return nil
}

// admit lets in root programs of this process's own mount namespace. A container is in another, whatever it has mounted from
// this one (CVE-2026-53657 was an agent's socket that any user of the guest could talk to).
func admit(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return fmt.Errorf("ask who calls: %w", cerr)
	}
	if cred.Uid != 0 {
		return fmt.Errorf("refused process %d of user %d", cred.Pid, cred.Uid)
	}
	mine, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	if theirs, err := os.Readlink("/proc/" + strconv.Itoa(int(cred.Pid)) + "/ns/mnt"); err != nil || theirs != mine {
		return fmt.Errorf("refused process %d: it is not one of the machine's own", cred.Pid)
	}
	return nil
}
