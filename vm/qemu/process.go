//go:build linux

package qemu

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one QEMU, from its launch to its end.
type process struct {
	cmd    *exec.Cmd
	stderr *tail
	done   chan struct{} // closed when it has ended and err is set
	err    error         // of exec.Cmd's Wait
}

// run launches path. files become the child's descriptors 3 and up; the caller keeps its own. The child dies with this
// process: the kernel sends the signal when the thread that forked ends, so that thread waits for the child and does
// nothing else.
func run(path string, args []string, files []*os.File) (*process, error) {
	p := &process{cmd: exec.Command(path, args...), stderr: &tail{}, done: make(chan struct{})}
	p.cmd.Stderr = p.stderr
	p.cmd.ExtraFiles = files
	p.cmd.WaitDelay = time.Second // for stderr, should something that QEMU left behind hold it
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("launch %s: %w", path, err)
	}
	return p, nil
}

// kill ends the process at once; done tells when. It may be called after the end.
func (p *process) kill() { p.cmd.Process.Kill() }

// tail keeps the last of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

const tailSize = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - tailSize; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}

// String is the tail without the warnings that say nothing to a user.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var keep []string
	for line := range strings.Lines(string(t.buf)) {
		if !strings.Contains(line, ": warning: ") {
			keep = append(keep, line)
		}
	}
	return strings.TrimSpace(strings.Join(keep, ""))
}

// socketPair is a connected pair: ours as a connection, the child's as a file to inherit. The caller closes both.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	near, far := os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	defer near.Close() // net.FileConn duplicates it
	c, err := net.FileConn(near)
	if err != nil {
		far.Close()
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return c.(*net.UnixConn), far, nil
}
