//go:build linux

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/service"
	"golang.org/x/sys/unix"
)

const (
	openTime   = 10 * time.Second       // for the frame that opens a session
	hangupTime = 2 * time.Second        // between a session's SIGHUP and its SIGKILL
	ttyTime    = 200 * time.Millisecond // for what the kernel still carries through a terminal whose program has ended
)

// shellPort runs a program for each stream of PortShell: guest/api's frames on one side, a terminal or three pipes on the
// other.
type shellPort struct {
	reaper *service.Reaper
	home   string
	log    *slog.Logger
}

// session is one program and its stream.
type session struct {
	conn  net.Conn
	child *service.Child
	tty   *os.File // the terminal's master; nil with pipes
	stdin *os.File // where data goes: the master, or a pipe
	mu    sync.Mutex
}

func (p *shellPort) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	s := &session{conn: conn}
	req, err := readRequest(conn)
	if err == nil {
		err = p.run(s, req)
	}
	if err != nil {
		p.log.Warn("shell session failed", "err", err)
		_ = s.send(api.FrameError, []byte(err.Error()))
	}
}

func readRequest(conn net.Conn) (api.ShellRequest, error) {
	var req api.ShellRequest
	if err := conn.SetReadDeadline(time.Now().Add(openTime)); err != nil {
		return req, err
	}
	t, payload, err := api.ReadFrame(conn)
	if err != nil {
		return req, fmt.Errorf("read shell request: %w", err)
	}
	if t != api.FrameOpen {
		return req, fmt.Errorf("read shell request: frame of type %d comes first", t)
	}
	if err := json.Unmarshal(payload, &req); err != nil {
		return req, fmt.Errorf("parse shell request: %w", err)
	}
	return req, conn.SetReadDeadline(time.Time{})
}

// run starts the program and serves it to its end. The error says why nothing was started.
func (p *shellPort) run(s *session, req api.ShellRequest) error {
	path, argv, err := program(req.Command)
	if err != nil {
		return err
	}
	attr := &syscall.ProcAttr{Dir: p.home, Env: environment(p.home, req)}
	outputs, closeTheirs, err := s.open(req, attr)
	if err != nil {
		return err
	}
	defer s.stdin.Close()
	s.child, err = p.reaper.Start(path, argv, attr)
	closeTheirs()
	if err != nil {
		for _, f := range outputs {
			f.Close()
		}
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(s.input)
	var out sync.WaitGroup
	for t, f := range outputs {
		out.Go(func() { s.output(t, f) })
	}
	out.Wait()
	_ = s.send(api.FrameExit, []byte{byte(service.Exit(s.child.Wait()))})
	if c, ok := s.conn.(stream); ok {
		_ = c.CloseWrite() // the host reads all before it sees the close
	}
	_ = s.conn.SetReadDeadline(time.Now()) // ends input
	return nil
}

// open makes the session's terminal or pipes, and gives the program's ends to attr. It returns our outputs by the type of
// frame that carries them, and what closes the program's ends here once they are its own.
func (s *session) open(req api.ShellRequest, attr *syscall.ProcAttr) (map[api.FrameType]*os.File, func(), error) {
	if req.TTY {
		master, slave, err := openPTY(req.Size)
		if err != nil {
			return nil, nil, err
		}
		fd := slave.Fd()
		attr.Files = []uintptr{fd, fd, fd}
		attr.Sys = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
		s.tty, s.stdin = master, master
		return map[api.FrameType]*os.File{api.FrameData: master}, func() { slave.Close() }, nil
	}
	var ours, theirs [3]*os.File
	for i := range ours {
		r, w, err := os.Pipe()
		if err != nil {
			for j := range i {
				ours[j].Close()
				theirs[j].Close()
			}
			return nil, nil, err
		}
		ours[i], theirs[i] = r, w
		if i == 0 {
			ours[i], theirs[i] = w, r
		}
		attr.Files = append(attr.Files, theirs[i].Fd())
	}
	attr.Sys = &syscall.SysProcAttr{Setsid: true}
	s.stdin = ours[0]
	closeTheirs := func() {
		for _, f := range theirs {
			f.Close()
		}
	}
	return map[api.FrameType]*os.File{api.FrameData: ours[1], api.FrameStderr: ours[2]}, closeTheirs, nil
}

// input carries frames to the program until the stream ends; a stream that ends before the program does hangs it up.
func (s *session) input() {
	data := make(chan []byte, 16) // what may be typed ahead of a program that does not read
	put := func(d []byte) {
		select {
		case data <- d:
		case <-s.child.Done():
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for d := range data {
			if _, err := s.stdin.Write(d); err != nil {
				continue // it reads no more; what comes is dropped
			}
		}
		if s.tty == nil {
			s.stdin.Close()
		}
	})
	eof := false
	for {
		t, payload, err := api.ReadFrame(s.conn)
		if err != nil {
			break
		}
		switch t {
		case api.FrameData:
			if !eof {
				put(payload)
			}
		case api.FrameEOF:
			switch {
			case s.tty != nil:
				put([]byte{4}) // as typed: Ctrl-D
			case !eof:
				eof = true
				close(data)
			}
		case api.FrameResize:
			var size api.Size
			if s.tty != nil && json.Unmarshal(payload, &size) == nil {
				_ = resize(s.tty, size)
			}
		}
	}
	s.hangUp()
	s.stdin.Close() // unblocks the writer
	if !eof {
		close(data)
	}
	wg.Wait()
}

// hangUp ends the program as a lost line would, and firmly if that is not enough.
func (s *session) hangUp() {
	s.child.Signal(unix.SIGHUP, true)
	timer := time.NewTimer(hangupTime)
	defer timer.Stop()
	select {
	case <-s.child.Done():
	case <-timer.C:
		s.child.Signal(unix.SIGKILL, true)
	}
}

// output carries what the program writes to the host, until the program's side is closed, or it has ended and nothing more
// is there. It goes on reading when the host takes no more, so that the program can end.
func (s *session) output(t api.FrameType, f *os.File) {
	if f != s.tty {
		defer f.Close()
	}
	grace := time.Duration(0)
	if f == s.tty {
		grace = ttyTime
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-s.child.Done():
			_ = f.SetReadDeadline(time.Now().Add(grace)) // others may hold the other end for long
		case <-done:
		}
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			_ = f.SetReadDeadline(time.Time{})
			s.drain(t, f, buf)
			return
		}
		if n > 0 {
			_ = s.send(t, buf[:n])
		}
		if err != nil { // EOF, or EIO of a terminal whose last user has gone
			<-s.child.Done()
			return
		}
	}
}

// drain sends what can be read from f without waiting.
func (s *session) drain(t api.FrameType, f *os.File, buf []byte) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	for {
		n := 0
		var rerr error
		err := raw.Read(func(fd uintptr) bool {
			n, rerr = unix.Read(int(fd), buf)
			return true
		})
		if errors.Is(rerr, unix.EINTR) {
			continue
		}
		if err != nil || rerr != nil || n <= 0 {
			return
		}
		_ = s.send(t, buf[:n])
	}
}

func (s *session) send(t api.FrameType, payload []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return api.WriteFrame(s.conn, t, payload)
}

// program finds what to run: command, or a login shell where that is empty.
func program(command []string) (path string, argv []string, err error) {
	if len(command) > 0 {
		path, err := exec.LookPath(command[0])
		if err != nil {
			return "", nil, fmt.Errorf("run %s: %w", command[0], errors.Unwrap(err))
		}
		return path, command, nil
	}
	for _, sh := range []string{"/bin/bash", "/bin/sh"} {
		if _, err := os.Stat(sh); err == nil {
			return sh, []string{"-" + filepath.Base(sh)}, nil
		}
	}
	return "", nil, errors.New("run a shell: the image has none")
}

func environment(home string, req api.ShellRequest) []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "USER=root", "LOGNAME=root", "SHELL=/bin/sh", "LANG=C.UTF-8"}
	if req.TTY {
		term := req.Term
		if term == "" {
			term = "xterm"
		}
		env = append(env, "TERM="+term)
	}
	return env
}
