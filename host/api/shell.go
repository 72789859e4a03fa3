package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/socket"
)

// ShellRequest says what to run in the machine and whether on a terminal; an empty Command is a root login shell.
type ShellRequest = guestapi.ShellRequest

// Size is a terminal's, in characters.
type Size = guestapi.Size

// ShellIO is what a shell reads and writes. On a terminal nothing goes to Stderr.
type ShellIO struct {
	Stdin          io.Reader // nil: empty
	Stdout, Stderr io.Writer
	Resize         <-chan Size // new sizes of the terminal; nil: none
}

// UpgradeShell is the protocol that POST /v1/shell upgrades to: guest/api's shell frames, in both directions.
const UpgradeShell = "coracle-shell"

// Shell runs a process in the machine, with std as its input and output, until it ends or ctx does, and returns its exit
// status (128 + signal where one killed it). The terminal's raw mode is the caller's. A Read of Stdin that is under way
// when the process ends is not waited for: it takes one more read from Stdin, which is lost.
func (c *Client) Shell(ctx context.Context, req ShellRequest, std ShellIO) (int, error) {
	conn, err := c.openShell(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	open, err := json.Marshal(req)
	if err != nil {
		return 0, err
	}
	w := &frameWriter{w: conn}
	_ = w.write(guestapi.FrameOpen, open) // where it fails, what the guest said before it went is more telling
	done := make(chan struct{})
	var resizes sync.WaitGroup
	resizes.Go(func() { w.sendSizes(std.Resize, done) })
	go w.sendInput(std.Stdin)
	status, err := receive(conn, std)
	close(done)
	resizes.Wait()
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	return status, err
}

// openShell dials and upgrades. It has a connection of its own, since nobody pools what has been upgraded.
func (c *Client) openShell(ctx context.Context) (net.Conn, error) {
	conn, err := socket.Dial(ctx, c.m.APISocket())
	if err != nil {
		return nil, c.notRunning(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://coracled/v1/shell", nil)
	if err != nil {
		conn.Close()
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", UpgradeShell)
	r := bufio.NewReader(conn)
	resp, err := roundTrip(conn, r, req)
	if err == nil && resp.StatusCode != http.StatusSwitchingProtocols {
		err = readError(resp)
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	return &bufferedConn{Conn: conn, r: r}, nil
}

func roundTrip(w io.Writer, r *bufio.Reader, req *http.Request) (*http.Response, error) {
	if err := req.Write(w); err != nil {
		return nil, fmt.Errorf("ask for a shell: %w", err)
	}
	resp, err := http.ReadResponse(r, req)
	if err != nil {
		return nil, fmt.Errorf("ask for a shell: %w", err)
	}
	return resp, nil
}

// bufferedConn reads first what came together with the answer's head.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// frameWriter lets input and sizes share one stream.
type frameWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (w *frameWriter) write(t guestapi.FrameType, payload []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return guestapi.WriteFrame(w.w, t, payload)
}

func (w *frameWriter) sendInput(stdin io.Reader) {
	buf := make([]byte, 32<<10)
	for stdin != nil {
		n, err := stdin.Read(buf)
		if n > 0 && w.write(guestapi.FrameData, buf[:n]) != nil {
			return
		}
		if err != nil {
			break
		}
	}
	_ = w.write(guestapi.FrameEOF, nil) // a stream that is gone is told by its reader
}

func (w *frameWriter) sendSizes(sizes <-chan Size, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case s, ok := <-sizes:
			if !ok {
				return
			}
			if b, err := json.Marshal(s); err != nil || w.write(guestapi.FrameResize, b) != nil {
				return
			}
		}
	}
}

// receive copies output until the frame that says how it ended.
func receive(r io.Reader, std ShellIO) (int, error) {
	for {
		t, payload, err := guestapi.ReadFrame(r)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return 0, fmt.Errorf("read from shell: %w", err)
		}
		switch t {
		case guestapi.FrameData:
			_, err = std.Stdout.Write(payload)
		case guestapi.FrameStderr:
			_, err = std.Stderr.Write(payload)
		case guestapi.FrameExit:
			if len(payload) != 1 {
				return 0, fmt.Errorf("read from shell: exit status of %d bytes", len(payload))
			}
			return int(payload[0]), nil
		case guestapi.FrameError:
			return 0, Errorf(CodeGuestFailed, "%s", payload)
		}
		if err != nil {
			return 0, fmt.Errorf("write shell's output: %w", err)
		}
	}
}
