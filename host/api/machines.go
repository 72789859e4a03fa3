package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/host/paths"
)

// answerTime bounds how long a list waits for one machine's process, which answers at once unless it hangs.
const answerTime = 3 * time.Second

// List is the status of every machine under home, by name. A machine whose process hangs is Failed and says so.
func List(ctx context.Context, home string) ([]Status, error) {
	entries, err := os.ReadDir(paths.Machines(home))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("list machines: %w", err)
	}
	var found []paths.Machine
	for _, e := range entries {
		if m, err := paths.ForMachine(home, e.Name()); err == nil && e.IsDir() {
			found = append(found, m)
		}
	}
	list := make([]Status, len(found))
	var asked sync.WaitGroup
	for i, m := range found {
		asked.Go(func() { list[i] = ask(ctx, m) })
	}
	asked.Wait()
	return list, ctx.Err()
}

func ask(ctx context.Context, m paths.Machine) Status {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	c := New(m)
	st, err := c.Status(ctx)
	var e *Error
	switch {
	case errors.As(err, &e):
		return Status{Name: m.Name, State: Failed, Error: e}
	case err != nil:
		return Status{Name: m.Name, State: Failed, Error: c.hangs()}
	}
	return st
}

// Delete removes a machine with all its data. CodeRunning: it must be stopped first. CodeNotFound: there is none.
func Delete(ctx context.Context, home, name string) error {
	if err := paths.CheckName(name); err != nil {
		return fromPaths(err)
	}
	_, err := coracled(ctx, home, nil, "delete", "--", name)
	return err
}

// Levels of a Check.
const (
	CheckOK   = "ok"
	CheckWarn = "warning" // works, but not as well as it could
	CheckFail = "failed"  // machines cannot start
)

// Check is one thing that Doctor looked at.
type Check struct {
	Name   string `json:"name"`
	Level  string `json:"level"`
	Detail string `json:"detail"`         // what was found
	Hint   string `json:"hint,omitempty"` // what to do about it
	Code   Code   `json:"code,omitempty"` // the class of the error that a start would meet
}

// Doctor looks for whatever could keep a machine under home from starting. It changes nothing.
func Doctor(ctx context.Context, home string) ([]Check, error) {
	out, err := coracled(ctx, home, nil, "doctor")
	if err != nil {
		return nil, err
	}
	var checks []Check
	if err := json.Unmarshal(out, &checks); err != nil {
		return nil, fmt.Errorf("decode host process's checks: %w", err)
	}
	return checks, nil
}

// coracled runs one of the host program's short commands with in as its standard input. It answers with JSON on its standard output: the result with
// exit status 0, else an Error.
func coracled(ctx context.Context, home string, in []byte, args ...string) ([]byte, error) {
	prog, err := FindCoracled()
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, prog, args...)
	cmd.Env = append(os.Environ(), "CORACLE_HOME="+home)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		var e Error
		if json.Unmarshal(stdout.Bytes(), &e) == nil && e.Code != "" {
			return nil, &e
		}
		return nil, fmt.Errorf("run coracled %s: %w: %s", args[0], err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}
