package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"github.com/coracle-engine/coracle/host/paths"
)

// LaunchOptions say which machine to start, and how.
type LaunchOptions struct {
	Home     string    // Coracle's home, absolute
	Name     string    // the machine; it is made where there is none
	CPUs     int       // 0: as the machine's settings say
	Memory   int64     // bytes; 0: as the machine's settings say
	Disk     int64     // bytes; 0: as the machine's settings say
	Arch     string    // of the guest; empty: as the machine's settings say
	Shares   []string  // PATH[:ro][:secrets], absolute; they are added to the machine's settings
	Context  bool      // make and select the machine's docker context
	Coracled string    // the host process's program; empty: FindCoracled
	Since    time.Time // when the user asked, from which a Step's times count; zero: now
}

// Launch starts a machine's host process, detached from the caller, and calls f with its events until the Engine API
// answers through the machine's Docker socket. An error is the one the machine failed with, nearly always an *Error.
//
// started is false where the machine ran already or somebody else was starting it, whose start is then followed as if it
// were ours; the options for its settings have had no effect then. When ctx ends or f fails, Launch returns, but the start
// goes on in the background: only Stop ends it.
func Launch(ctx context.Context, o LaunchOptions, f func(Event) error) (started bool, err error) {
	m, err := paths.ForMachine(o.Home, o.Name)
	if err != nil {
		return false, fromPaths(err)
	}
	if o.Since.IsZero() {
		o.Since = time.Now()
	}
	c := New(m)
	switch st, err := c.live(ctx); {
	case err != nil:
		return false, err
	case st.State == Starting || st.State == Running && c.pings(ctx):
		return false, c.follow(ctx, f)
	case st.State != "": // on its way out, even where it has yet to learn that its hypervisor is gone
		ended, err := c.awaitEnd(ctx, st.State)
		if err != nil {
			return false, err
		}
		if !ended { // it lives; only its engine does not answer now
			return false, c.follow(ctx, f)
		}
	}
	err = c.spawn(ctx, o, f)
	if CodeOf(err) != CodeRunning {
		return true, err
	}
	if other := c.follow(ctx, f); CodeOf(other) != CodeNotRunning { // another one was quicker
		return false, other
	}
	return false, err // the owner answers nobody: what is left of a process that was killed
}

// dyingTime is how long a host process may take to see that its virtual machine is gone.
const dyingTime = 2 * time.Second

// awaitEnd is whether a host process in state has ended. One that is running is given dyingTime.
func (c *Client) awaitEnd(ctx context.Context, state State) (bool, error) {
	bounded, cancel := ctx, context.CancelFunc(func() {})
	if state == Running {
		bounded, cancel = context.WithTimeout(ctx, dyingTime)
	}
	defer cancel()
	err := c.Watch(bounded, func(Event) error { return nil })
	switch {
	case err == nil || CodeOf(err) == CodeNotRunning:
		return true, nil
	case ctx.Err() == nil && bounded.Err() != nil:
		return false, nil
	}
	return false, err
}

// pings is whether the Engine API answers on the machine's Docker socket.
func (c *Client) pings(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	return c.Ping(ctx) == nil
}

// live is the status that a host process answers with, a zero one where there is none.
func (c *Client) live(ctx context.Context) (Status, error) {
	bounded, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	var st Status
	err := c.call(bounded, http.MethodGet, "/v1/status", nil, &st)
	switch {
	case CodeOf(err) == CodeNotRunning:
		return Status{}, nil
	case ctx.Err() == nil && bounded.Err() != nil:
		return Status{}, c.hangs()
	}
	return st, err
}

func (c *Client) hangs() *Error {
	return &Error{Code: CodeInternal, Message: fmt.Sprintf("machine %q has a host process that does not answer", c.m.Name), Hint: "end its process coracled and start again; see " + c.m.Log()}
}

func fromPaths(err error) error {
	switch {
	case errors.Is(err, paths.ErrName):
		return &Error{Code: CodeName, Message: err.Error()}
	case errors.Is(err, paths.ErrTooLong):
		return &Error{Code: CodePathTooLong, Message: err.Error()}
	}
	return err
}

// errUp ends a Watch at the event that was waited for.
var errUp = errors.New("machine is up")

// outcome is errUp at the event that says that a start has succeeded, its error where it failed, else nil.
func outcome(e Event) error {
	switch {
	case e.Kind == EventState && e.State == Running:
		return errUp
	case e.Kind == EventError && e.Error != nil:
		return e.Error
	}
	return nil
}

// follow waits for a start that is under way. CodeNotRunning: it was stopped.
func (c *Client) follow(ctx context.Context, f func(Event) error) error {
	err := c.Watch(ctx, func(e Event) error {
		if err := f(e); err != nil {
			return err
		}
		if err := outcome(e); err != errUp {
			return err
		}
		st, err := c.Status(ctx) // the event may be an old one
		if err != nil || st.State != Running {
			return err
		}
		return errUp
	})
	switch {
	case err == errUp:
		return nil
	case err == nil:
		return Errorf(CodeNotRunning, "machine %q was stopped while it was awaited", c.m.Name)
	}
	return err
}

// spawn runs coracled and reads its events from a pipe, so that a failure is told even where no API socket could be made.
func (c *Client) spawn(ctx context.Context, o LaunchOptions, f func(Event) error) error {
	prog, err := o.program()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(prog, o.args()...)
	cmd.Env = append(os.Environ(), "CORACLE_HOME="+o.Home)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = detached()
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start host process: %w", err)
	}
	go cmd.Wait() // reaps it in a caller that outlives the machine, such as the desktop app; it ends with the machine
	defer context.AfterFunc(ctx, func() { r.Close() })()
	err = readEvents(r, f)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func (o LaunchOptions) program() (string, error) {
	if o.Coracled != "" {
		return o.Coracled, nil
	}
	return FindCoracled()
}

func (o LaunchOptions) args() []string {
	args := []string{"run", "--since", strconv.FormatInt(o.Since.UnixNano(), 10), "--context=" + strconv.FormatBool(o.Context)}
	for _, f := range []struct {
		name  string
		value int64
	}{{"--cpus", int64(o.CPUs)}, {"--memory", o.Memory}, {"--disk", o.Disk}} {
		if f.value != 0 {
			args = append(args, f.name, strconv.FormatInt(f.value, 10))
		}
	}
	if o.Arch != "" {
		args = append(args, "--arch", o.Arch)
	}
	for _, share := range o.Shares {
		args = append(args, "--share="+share)
	}
	return append(args, "--", o.Name)
}

// readEvents returns nil at the event that says that the machine is up. What is not an event is a crash's last words.
func readEvents(r *os.File, f func(Event) error) error {
	var words []byte
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e Event
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Kind == "" {
			if len(words) < 2000 {
				words = append(append(words, lines.Bytes()...), '\n')
			}
			continue
		}
		out := outcome(e)
		if CodeOf(out) == CodeRunning {
			return out // not for f: it is followed instead
		}
		if err := f(e); err != nil {
			return err
		}
		if out == errUp {
			return nil
		}
		if out != nil {
			return out
		}
	}
	if words = bytes.TrimSpace(words); len(words) > 0 {
		return Errorf(CodeInternal, "host process ended during the start: %s", words)
	}
	return Errorf(CodeNotRunning, "the machine was stopped during its start")
}

// FindCoracled is the path of the host process's program: $CORACLE_CORACLED, else beside this executable, else on PATH.
func FindCoracled() (string, error) {
	if p := os.Getenv("CORACLE_CORACLED"); p != "" {
		return p, nil
	}
	name := "coracled"
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		p := filepath.Join(filepath.Dir(exe), name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	if p, err := exec.LookPath(name); err == nil {
		return filepath.Abs(p)
	}
	return "", &Error{Code: CodeNotFound, Message: "the program coracled is neither beside coracle nor on PATH", Hint: "install it again, or set CORACLE_CORACLED to its path"}
}
