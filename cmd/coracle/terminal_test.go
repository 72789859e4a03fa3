//go:build !windows

package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
)

// onTerminal runs coracle on a terminal of 33 rows and 99 columns, types input when the prompt shows, and returns all that
// the terminal showed.
func onTerminal(t *testing.T, home, prompt, input string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "coracle", args...)
	cmd.Env = append(os.Environ(), "CORACLE_HOME="+home, "TERM=xterm-256color", "NO_COLOR=")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 99})
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	var shown lockedBuffer
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = io.Copy(&shown, tty) })
	for deadline := time.Now().Add(20 * time.Second); prompt != "" && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if strings.Contains(shown.String(), prompt) {
			break
		}
	}
	if _, err := io.WriteString(tty, input); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("coracle %v: %v: %s", args, err, shown.String())
	}
	reading.Wait()
	return shown.String()
}

func TestTerminal(t *testing.T) {
	home, err := os.MkdirTemp("", "coracle") // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(home)
	defer stopAll(home)
	out := onTerminal(t, home, "", "", "start", "--trace")
	for _, want := range []string{"\x1b[32m✓\x1b[0m checking the image", "█", "\x1b[33mnote:\x1b[0m"} {
		if !strings.Contains(out, want) {
			t.Errorf("start on a terminal does not show %q: %q", want, out)
		}
	}
	if strings.Contains(out, "answer\x1b[2J") {
		t.Errorf("what a guest said commands the terminal: %q", out)
	}
	if out := onTerminal(t, home, "", "", "shell", "--", "tty"); !strings.Contains(out, "tty true xterm-256color 99x33") {
		t.Errorf("a shell's terminal: %q", out)
	}
	if out := onTerminal(t, home, "root shell, tty true\r\n", "typed\r", "shell"); !strings.Contains(out, "typed\r") {
		t.Errorf("a login shell echoed %q", out)
	}
	if out := onTerminal(t, home, "", "", "logs", "--console"); !strings.Contains(out, "^[]0;evil^G") {
		t.Errorf("the console on a terminal: %q", out)
	}
}
