//go:build linux

package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a Service that is a program.
type Process struct {
	Label    string
	Path     string
	Args     []string // without the program's name
	Env      []string
	OOMScore int
	// Cgroup is the control group's directory that the program is born into; it is made. Empty: that of this process.
	Cgroup string
	Grace  time.Duration // between SIGTERM and SIGKILL
	Output io.Writer     // gets standard output and error; must not block
	Reaper *Reaper
	// Notify is where the socket is made on which the program says that it is ready (sd_notify(3), "READY=1"). Its
	// directory is made as well. Empty: the program is ready when it runs.
	Notify string
	// Before runs before each start; an error counts as the service's own. May be nil.
	Before func(ctx context.Context) error
	// Check runs after the program said that it is ready, and has the last word. May be nil.
	Check func(ctx context.Context) error
	// Leave runs before the program is told to end. Grace begins after it. May be nil.
	Leave func()

	now running
}

type running struct {
	mu    sync.Mutex
	child *Child        // nil while the program does not run
	told  chan struct{} // closed and replaced each time that the program says that it is ready
}

// Name implements Service.
func (p *Process) Name() string { return p.Label }

// Run implements Service. When ctx ends the program gets SIGTERM and, after Grace, SIGKILL.
func (p *Process) Run(ctx context.Context, ready func()) error {
	if p.Before != nil {
		if err := p.Before(ctx); err != nil {
			return err
		}
	}
	notify, env, err := p.listen()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	if notify != nil {
		defer notify.Close()
	}
	sys, done, err := p.birth()
	if err != nil {
		return err
	}
	child, out, err := start(p.Reaper, p.Path, p.Args, env, p.Output, sys)
	done()
	if err != nil {
		return err
	}
	defer out()
	setOOMScore(child.PID, p.OOMScore)
	first := p.runs(child)
	defer p.runs(nil)
	if notify != nil {
		wg.Go(func() { p.hear(notify) })
	}
	checks, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() {
		err := p.awaitReady(checks, notify != nil, first)
		switch {
		case err == nil:
			ready()
		case checks.Err() == nil:
			fmt.Fprintf(p.Output, "%s is not usable: %v\n", p.Label, err)
			child.Signal(unix.SIGTERM, false)
		}
	})
	select {
	case <-child.Done():
	case <-ctx.Done():
		p.stop(child)
	}
	return Outcome(p.Label, child.Wait())
}

// runs notes which process the program is now, and returns what is closed when it says that it is ready.
func (p *Process) runs(child *Child) <-chan struct{} {
	p.now.mu.Lock()
	defer p.now.mu.Unlock()
	p.now.child, p.now.told = child, make(chan struct{})
	return p.now.told
}

// Reload has the running program read its configuration anew: SIGHUP, and its word on the notify socket that it is done with
// it. That it took the configuration is not said by that. One Reload must have ended before the next begins.
func (p *Process) Reload(ctx context.Context) error {
	p.now.mu.Lock()
	child, told := p.now.child, p.now.told
	p.now.mu.Unlock()
	if child == nil {
		return fmt.Errorf("reload %s: %w", p.Label, ErrDown)
	}
	child.Signal(unix.SIGHUP, false)
	select {
	case <-told:
		return nil
	case <-child.Done():
		return fmt.Errorf("reload %s: %w: it ended", p.Label, ErrDown)
	case <-ctx.Done():
		return fmt.Errorf("reload %s: %w", p.Label, context.Cause(ctx))
	}
}

// birth is how the program comes into the world. The caller calls done when it has.
func (p *Process) birth() (sys *syscall.SysProcAttr, done func(), err error) {
	sys = &syscall.SysProcAttr{Setpgid: true}
	if p.Cgroup == "" {
		return sys, func() {}, nil
	}
	if err := os.MkdirAll(p.Cgroup, 0o755); err != nil {
		return nil, nil, fmt.Errorf("make control group of %s: %w", p.Label, err)
	}
	dir, err := os.Open(p.Cgroup)
	if err != nil {
		return nil, nil, fmt.Errorf("open control group of %s: %w", p.Label, err)
	}
	sys.UseCgroupFD, sys.CgroupFD = true, int(dir.Fd())
	return sys, func() { dir.Close() }, nil
}

func (p *Process) stop(child *Child) {
	if p.Leave != nil {
		p.Leave()
	}
	child.Signal(unix.SIGTERM, false)
	timer := time.NewTimer(p.Grace)
	defer timer.Stop()
	select {
	case <-child.Done():
	case <-timer.C:
		fmt.Fprintf(p.Output, "%s did not end within %v: killing it\n", p.Label, p.Grace)
		child.Signal(unix.SIGKILL, false)
		<-child.Done()
	}
}

func (p *Process) listen() (*net.UnixConn, []string, error) {
	if p.Notify == "" {
		return nil, p.Env, nil
	}
	if err := os.MkdirAll(filepath.Dir(p.Notify), 0o700); err != nil {
		return nil, nil, fmt.Errorf("make notify socket of %s: %w", p.Label, err)
	}
	if err := os.Remove(p.Notify); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, fmt.Errorf("make notify socket of %s: %w", p.Label, err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: p.Notify, Net: "unixgram"})
	if err != nil {
		return nil, nil, fmt.Errorf("make notify socket of %s: %w", p.Label, err)
	}
	return conn, append([]string{"NOTIFY_SOCKET=" + p.Notify}, p.Env...), nil
}

// awaitReady returns nil when the program is ready, and an error when ctx ends.
func (p *Process) awaitReady(ctx context.Context, tells bool, told <-chan struct{}) error {
	if tells {
		select {
		case <-told:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if p.Check != nil {
		return p.Check(ctx)
	}
	return nil
}

// hear reads all that the program says on its notify socket, until that is closed. A program whose words nobody reads stands
// still after a few.
func (p *Process) hear(notify *net.UnixConn) {
	for buf := make([]byte, 4096); ; {
		n, err := notify.Read(buf)
		if err != nil {
			return
		}
		if saysReady(buf[:n]) {
			p.now.mu.Lock()
			close(p.now.told)
			p.now.told = make(chan struct{})
			p.now.mu.Unlock()
		}
	}
}

func saysReady(msg []byte) bool {
	for line := range bytes.SplitSeq(msg, []byte("\n")) {
		if string(line) == "READY=1" {
			return true
		}
	}
	return false
}

// Command runs a program to its end, its output to out. It is killed when ctx ends.
func (r *Reaper) Command(ctx context.Context, out io.Writer, path string, args ...string) (syscall.WaitStatus, error) {
	child, drained, err := start(r, path, args, os.Environ(), out, &syscall.SysProcAttr{Setpgid: true})
	if err != nil {
		return 0, err
	}
	defer drained()
	stop := context.AfterFunc(ctx, func() { child.Signal(unix.SIGKILL, false) })
	defer stop()
	return child.Wait(), nil
}

// start runs a program as sys says with its output to w. The returned function waits until what the
// program wrote before its end has arrived; children of its that still hold its output are left behind.
func start(r *Reaper, path string, args, env []string, w io.Writer, sys *syscall.SysProcAttr) (*Child, func(), error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	rd, wr, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	child, err := r.Start(path, append([]string{path}, args...), &syscall.ProcAttr{
		Dir: "/", Env: env, Files: []uintptr{null.Fd(), wr.Fd(), wr.Fd()},
		Sys: sys,
	})
	wr.Close()
	if err != nil {
		rd.Close()
		return nil, nil, err
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(w, rd)
	}()
	return child, func() {
		_ = rd.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		<-copied
		rd.Close()
	}, nil
}

// setOOMScore is best effort: without it the kernel only chooses less well whom to kill.
func setOOMScore(pid, score int) {
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(strconv.Itoa(score)), 0)
}
