//go:build linux

package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reaper starts all children of this process and waits for them, and for the orphans that a PID 1 inherits. No other code of
// the process may start children (os/exec included): the Reaper would take their exit status away.
type Reaper struct {
	signals chan os.Signal

	mu       sync.Mutex // held over fork and note, so that no child can be reaped before it is known
	children map[int]*Child
	orphans  int           // reaped so far
	reaped   chan struct{} // closed and replaced after each pass that reaped
}

// Child is a process that was started by a Reaper.
type Child struct {
	PID    int
	reaper *Reaper
	done   chan struct{}
	status syscall.WaitStatus // valid after done
}

// NewReaper makes a Reaper. From now on the end of children is noted; Run reaps them.
func NewReaper() *Reaper {
	r := &Reaper{signals: make(chan os.Signal, 1), children: map[int]*Child{}, reaped: make(chan struct{})}
	signal.Notify(r.signals, unix.SIGCHLD)
	return r
}

// Run reaps until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	defer signal.Stop(r.signals)
	for {
		r.reap()
		select {
		case <-r.signals:
		case <-ctx.Done():
			return
		}
	}
}

func (r *Reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for n := 0; ; n++ {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid == 0 {
			if n > 0 {
				close(r.reaped)
				r.reaped = make(chan struct{})
			}
			return
		}
		if c := r.children[pid]; c != nil {
			delete(r.children, pid)
			c.status = status
			close(c.done)
		} else {
			r.orphans++
		}
	}
}

// Start runs the program at path. attr's files are the caller's to close.
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr) (*Child, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	c := &Child{PID: pid, reaper: r, done: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}

// Empty returns when this process has no child left, or with ctx's error.
func (r *Reaper) Empty(ctx context.Context) error {
	for {
		r.mu.Lock()
		// WNOWAIT looks without taking.
		err := unix.Waitid(unix.P_ALL, 0, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		reaped := r.reaped
		r.mu.Unlock()
		if errors.Is(err, unix.ECHILD) {
			return nil
		}
		select {
		case <-reaped:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Done is closed when the process has ended and its status is known.
func (c *Child) Done() <-chan struct{} { return c.done }

// Wait blocks until the process has ended.
func (c *Child) Wait() syscall.WaitStatus {
	<-c.done
	return c.status
}

// Signal sends sig to the process, or to its process group where group is set. It does nothing after the process was
// reaped, when its number may be another's.
func (c *Child) Signal(sig syscall.Signal, group bool) {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	if c.reaper.children[c.PID] != c {
		return
	}
	pid := c.PID
	if group {
		pid = -pid
	}
	_ = syscall.Kill(pid, sig)
}

// Exit is an exit status as shells number it: 128 + signal where one killed the process.
func Exit(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// Outcome says in words how a process ended; nil for exit status 0.
func Outcome(name string, s syscall.WaitStatus) error {
	switch {
	case s.Signaled():
		return fmt.Errorf("%s was killed by signal %v", name, s.Signal())
	case s.ExitStatus() != 0:
		return fmt.Errorf("%s ended with status %d", name, s.ExitStatus())
	}
	return nil
}
