//go:build linux

package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// reaper is the only one of this test binary, whose process adopts orphans as a PID 1 would.
var reaper *Reaper

func TestMain(m *testing.M) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "become a subreaper:", err)
		os.Exit(1)
	}
	reaper = NewReaper()
	ctx, cancel := context.WithCancel(context.Background())
	go reaper.Run(ctx)
	code := m.Run()
	cancel()
	os.Exit(code)
}

// output is an io.Writer whose content can be waited for.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestReaper(t *testing.T) {
	ctx := within(t)
	var out output
	var wg sync.WaitGroup
	// Children that end at once, each with its own status, while orphans end beside them.
	for i := range 40 {
		wg.Go(func() {
			status, err := reaper.Command(ctx, &out, "/bin/sh", "-c", fmt.Sprintf("(exec sleep 0.0%d) & exit %d", i%10, i))
			if err != nil || Exit(status) != i {
				t.Errorf("child %d: status %d, %v", i, Exit(status), err)
			}
		})
	}
	wg.Wait()
	if err := reaper.Empty(ctx); err != nil {
		t.Fatalf("orphans are left: %v", err)
	}
	reaper.mu.Lock()
	orphans, left := reaper.orphans, len(reaper.children)
	reaper.mu.Unlock()
	if orphans < 40 || left != 0 {
		t.Errorf("%d orphans were reaped, %d children are still waited for: want 40 and 0", orphans, left)
	}
}

func TestReaperEmptyWaits(t *testing.T) {
	child, err := reaper.Start("/bin/sleep", []string{"sleep", "60"}, &syscall.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := reaper.Empty(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Empty() = %v with a child alive", err)
	}
	child.Signal(unix.SIGKILL, false)
	if got := Exit(child.Wait()); got != 137 {
		t.Errorf("exit status %d: want 137", got)
	}
	if err := reaper.Empty(within(t)); err != nil {
		t.Error(err)
	}
	child.Signal(unix.SIGKILL, false) // must not reach a stranger: there is nobody of that number to be noticed by
}

func TestReaperStartFails(t *testing.T) {
	if _, err := reaper.Start("/no/such/program", []string{"x"}, &syscall.ProcAttr{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Start() = %v", err)
	}
}

func script(out io.Writer, text string) *Process {
	return &Process{
		Label: "script", Path: "/bin/sh", Args: []string{"-c", text}, Env: os.Environ(),
		Grace: 10 * time.Second, Output: out, Reaper: reaper,
	}
}

func TestProcess(t *testing.T) {
	t.Run("its output arrives whole and its failure is told", func(t *testing.T) {
		var out output
		err := script(&out, "echo to stdout; echo to stderr >&2; exit 3").Run(within(t), func() {})
		if err == nil || !strings.Contains(err.Error(), "status 3") {
			t.Errorf("Run() = %v", err)
		}
		if out.String() != "to stdout\nto stderr\n" {
			t.Errorf("output is %q", out.String())
		}
	})
	t.Run("an orphan that holds the output does not hold the service", func(t *testing.T) {
		var out output
		began := time.Now()
		if err := script(&out, "sleep 30 & echo $!").Run(within(t), func() {}); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("Run took %v", d)
		}
		var pid int
		if _, err := fmt.Sscan(out.String(), &pid); err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Error(err)
		}
	})
	t.Run("SIGTERM, and time to end", func(t *testing.T) {
		var out output
		ctx, cancel := context.WithCancel(within(t))
		p := script(&out, `trap 'echo ending; exit 0' TERM; while :; do sleep 0.05; done`)
		if err := p.Run(ctx, func() { time.AfterFunc(300*time.Millisecond, cancel) }); err != nil {
			t.Error(err)
		}
		if !strings.Contains(out.String(), "ending") {
			t.Errorf("output is %q: the trap did not run", out.String())
		}
	})
	t.Run("SIGKILL for what does not end", func(t *testing.T) {
		var out output
		ctx, cancel := context.WithCancel(within(t))
		p := script(&out, `trap '' TERM; while :; do sleep 0.05; done`)
		p.Grace = 100 * time.Millisecond
		err := p.Run(ctx, func() { time.AfterFunc(300*time.Millisecond, cancel) })
		if err == nil || !strings.Contains(err.Error(), "killed") || !strings.Contains(out.String(), "did not end") {
			t.Errorf("Run() = %v, output %q", err, out.String())
		}
	})
}

func TestProcessReadiness(t *testing.T) {
	const notifier = "GUEST_TEST_NOTIFY"
	if os.Getenv(notifier) != "" {
		return
	}
	notify := filepath.Join(t.TempDir(), "sub", "n")
	run := func(t *testing.T, check func(context.Context) error) (ready bool, err error) {
		var out output
		ctx, cancel := context.WithCancel(within(t))
		defer cancel()
		p := &Process{
			Label: "self", Path: os.Args[0], Args: []string{"-test.run=^TestNotifyHelper$"}, Env: append(os.Environ(), notifier+"=1"),
			Grace: time.Second, Output: &out, Reaper: reaper, Notify: notify, Check: check,
		}
		err = p.Run(ctx, func() { ready = true; cancel() })
		return ready, err
	}
	t.Run("it says so", func(t *testing.T) {
		if ready, err := run(t, nil); !ready {
			t.Errorf("never ready: %v", err)
		}
	})
	t.Run("the check has the last word", func(t *testing.T) {
		ready, err := run(t, func(context.Context) error { return errors.New("no answer") })
		if ready || err == nil {
			t.Errorf("ready %v, error %v: want the process ended and not ready", ready, err)
		}
	})
}

// TestProcessReload reloads more often than a socket that nobody reads would carry.
func TestProcessReload(t *testing.T) {
	const notifier = "GUEST_TEST_NOTIFY"
	var out output
	ctx, cancel := context.WithCancel(within(t))
	p := &Process{
		Label: "self", Path: os.Args[0], Args: []string{"-test.run=^TestNotifyHelper$"}, Env: append(os.Environ(), notifier+"=1"),
		Grace: time.Second, Output: &out, Reaper: reaper, Notify: filepath.Join(t.TempDir(), "n"),
	}
	left := false
	p.Leave = func() { left = true }
	if err := p.Reload(ctx); !errors.Is(err, ErrDown) {
		t.Errorf("Reload() before the start = %v", err)
	}
	started := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx, func() { close(started) }) })
	select {
	case <-started:
	case <-ctx.Done():
		t.Fatal("never ready")
	}
	for i := range 30 {
		if err := p.Reload(ctx); err != nil {
			t.Fatalf("reload %d: %v", i, err)
		}
	}
	cancel()
	wg.Wait()
	if !left {
		t.Error("Leave was not called")
	}
	if err := p.Reload(within(t)); !errors.Is(err, ErrDown) {
		t.Errorf("Reload() after the end = %v", err)
	}
}

// TestNotifyHelper is the program that TestProcessReadiness runs.
func TestNotifyHelper(t *testing.T) {
	if os.Getenv("GUEST_TEST_NOTIFY") == "" {
		t.Skip("runs as a child of TestProcessReadiness")
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	say := func(msg string) {
		if err := unix.Sendto(fd, []byte(msg), 0, &unix.SockaddrUnix{Name: os.Getenv("NOTIFY_SOCKET")}); err != nil {
			t.Fatal(err)
		}
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, unix.SIGHUP)
	say("STATUS=not READY=1")
	say("STATUS=x\nREADY=1")
	for end := time.After(20 * time.Second); ; { // until the parent ends it
		select {
		case <-hup:
			say("RELOADING=1\nMONOTONIC_USEC=1")
			say("READY=1")
		case <-end:
			return
		}
	}
}

// stuck is a console that takes nothing until it is released.
type stuck struct {
	release chan struct{}
	to      io.Writer
}

func (s *stuck) Write(p []byte) (int, error) { <-s.release; return s.to.Write(p) }

func TestLog(t *testing.T) {
	clock := func() time.Duration { return 1500 * time.Millisecond }
	run := func(l *Log, during func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { l.Run(ctx) })
		during()
		cancel()
		wg.Wait()
	}
	t.Run("lines", func(t *testing.T) {
		var out output
		l := NewLog(&out, clock)
		run(l, func() {
			w := l.Writer("dockerd")
			fmt.Fprint(w, "one\ntw")
			fmt.Fprint(w, "o\n\n")
			fmt.Fprint(w, strings.Repeat("x", maxLine+1)+"\nlast\n")
		})
		want := "[    1.500] dockerd: one\n[    1.500] dockerd: two\n[    1.500] dockerd: \n[    1.500] dockerd: " +
			strings.Repeat("x", maxLine) + "\n[    1.500] dockerd: x\n[    1.500] dockerd: last\n"
		if out.String() != want {
			t.Errorf("console is %q", out.String())
		}
	})
	t.Run("never blocks", func(t *testing.T) {
		var out output
		con := &stuck{release: make(chan struct{}), to: &out}
		l := NewLog(con, clock)
		run(l, func() {
			w := l.Writer("x")
			for i := range 10_000 {
				fmt.Fprintln(w, i)
			}
			close(con.release)
		})
		kept, dropped := 0, 0
		for line := range strings.Lines(out.String()) {
			var n int
			if _, text, ok := strings.Cut(line, " log: "); !ok {
				kept++
			} else if _, err := fmt.Sscanf(text, "%d lines dropped", &n); err != nil {
				t.Errorf("line %q", line)
			}
			dropped += n
		}
		if kept+dropped != 10_000 || kept < 1000 {
			t.Errorf("kept %d lines, told of %d dropped", kept, dropped)
		}
	})
	t.Run("files are capped", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "log")
		l := NewLog(io.Discard, clock)
		if err := l.KeepFiles(dir, 1000); err != nil {
			t.Fatal(err)
		}
		run(l, func() {
			w := l.Writer("x")
			for i := range 500 {
				fmt.Fprintln(w, i)
			}
		})
		total := int64(0)
		for _, name := range []string{"x.log", "x.log.1"} {
			st, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			total += st.Size()
		}
		if total > 2100 {
			t.Errorf("the files have %d bytes", total)
		}
	})
}
