//go:build linux

package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/service"
	"golang.org/x/sys/unix"
)

var reaper *service.Reaper

// client is a host's end of a shell stream.
type client struct {
	t *testing.T
	*net.UnixConn
}

func openShell(t *testing.T, req api.ShellRequest) client {
	t.Helper()
	l := listen(t)
	p := &shellPort{reaper: reaper, home: t.TempDir(), log: quiet}
	done := make(chan error, 1)
	go func() { done <- streams(t.Context(), l, maxStreams, p.serve) }()
	t.Cleanup(func() { l.Close(); <-done })
	c := client{t, dial(t, l)}
	body, err := json.Marshal(req)
	if err != nil {
		t.Fatal(err)
	}
	c.send(api.FrameOpen, string(body))
	return c
}

func (c client) send(ft api.FrameType, payload string) {
	c.t.Helper()
	if err := api.WriteFrame(c, ft, []byte(payload)); err != nil {
		c.t.Fatal(err)
	}
}

// rest reads to the end of the stream.
func (c client) rest() (stdout, stderr string, last api.FrameType, end string) {
	c.t.Helper()
	for {
		ft, payload, err := api.ReadFrame(c)
		if errors.Is(err, io.EOF) {
			return stdout, stderr, last, end
		}
		if err != nil {
			c.t.Fatal(err)
		}
		switch last = ft; ft {
		case api.FrameData:
			stdout += string(payload)
		case api.FrameStderr:
			stderr += string(payload)
		case api.FrameExit, api.FrameError:
			end = string(payload)
		}
	}
}

// expect reads until the output has want.
func (c client) expect(want string) string {
	c.t.Helper()
	var got bytes.Buffer
	for !strings.Contains(got.String(), want) {
		ft, payload, err := api.ReadFrame(c)
		if err != nil || ft != api.FrameData {
			c.t.Fatalf("waiting for %q: frame %d, %v, so far %q", want, ft, err, got.String())
		}
		got.Write(payload)
	}
	return got.String()
}

func sh(script string) []string { return []string{"sh", "-c", script} }

func TestShellPipes(t *testing.T) {
	for name, c := range map[string]struct {
		command             []string
		stdin               string
		out, stderr, status string
	}{
		"status, output, error": {sh("echo out; echo err >&2; exit 7"), "", "out\n", "err\n", "\x07"},
		"stdin to its end":      {sh("cat; echo end"), "some\ntext", "some\ntextend\n", "", "\x00"},
		"killed":                {sh("kill -9 $$"), "", "", "", "\x89"},
		"stdin not read":        {sh("exit 0"), strings.Repeat("x", 60_000), "", "", "\x00"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openShell(t, api.ShellRequest{Command: c.command})
			_ = api.WriteFrame(s, api.FrameData, []byte(c.stdin)) // the program may have ended
			_ = api.WriteFrame(s, api.FrameEOF, nil)
			out, stderr, last, end := s.rest()
			if out != c.out || stderr != c.stderr || last != api.FrameExit || end != c.status {
				t.Errorf("out %q, err %q, last frame %d %q", out, stderr, last, end)
			}
		})
	}
}

func TestShellOutputIsWhole(t *testing.T) {
	s := openShell(t, api.ShellRequest{Command: sh("head -c 3000000 /dev/zero; sleep 30 &")}) // whom the end of sh does not end
	time.Sleep(100 * time.Millisecond)                                                        // a host that is slow to read
	out, _, last, _ := s.rest()
	if len(out) != 3_000_000 || last != api.FrameExit {
		t.Errorf("%d bytes came, last frame %d", len(out), last)
	}
}

func TestShellTerminal(t *testing.T) {
	s := openShell(t, api.ShellRequest{
		Command: sh("stty -echo; stty size; echo $TERM; tty; read x; stty size; echo got $x; cat; exit 5"),
		TTY:     true, Term: "vt100", Size: api.Size{Rows: 11, Cols: 22},
	})
	if got := s.expect("/dev/pts/"); !strings.Contains(got, "11 22") || !strings.Contains(got, "vt100") {
		t.Errorf("the terminal says %q", got)
	}
	s.send(api.FrameResize, `{"rows":33,"cols":44}`)
	s.send(api.FrameData, "line\n")
	if got := s.expect("got line"); !strings.Contains(got, "33 44") {
		t.Errorf("after the resize the terminal says %q", got)
	}
	s.send(api.FrameEOF, "")
	if _, _, last, end := s.rest(); last != api.FrameExit || end != "\x05" {
		t.Errorf("last frame %d %q", last, end)
	}
}

func TestShellTerminalSignals(t *testing.T) {
	s := openShell(t, api.ShellRequest{Command: sh("trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.02; done"), TTY: true})
	s.expect("ready")
	s.send(api.FrameData, "\x03")
	if out, _, _, end := s.rest(); end != "\x03" || !strings.Contains(out, "interrupted") {
		t.Errorf("out %q, end %q", out, end)
	}
}

func TestShellHangUp(t *testing.T) {
	for name, tty := range map[string]bool{"terminal": true, "pipes": false} {
		t.Run(name, func(t *testing.T) {
			s := openShell(t, api.ShellRequest{Command: sh("echo $$.; exec sleep 60"), TTY: tty})
			var pid int
			if _, err := fmt.Sscanf(s.expect("."), "%d", &pid); err != nil {
				t.Fatal(err)
			}
			s.Close()
			for range 200 {
				if errors.Is(unix.Kill(pid, 0), unix.ESRCH) {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
			t.Error("the program lives on")
		})
	}
}

func TestShellRefuses(t *testing.T) {
	t.Run("no such program", func(t *testing.T) {
		_, _, last, end := openShell(t, api.ShellRequest{Command: []string{"no-such-program"}}).rest()
		if last != api.FrameError || !strings.Contains(end, "no-such-program") {
			t.Errorf("last frame %d %q", last, end)
		}
	})
	for name, first := range map[string]struct {
		t       api.FrameType
		payload string
	}{"data before open": {api.FrameData, "x"}, "no JSON": {api.FrameOpen, "{"}} {
		t.Run(name, func(t *testing.T) {
			l := listen(t)
			p := &shellPort{reaper: reaper, home: "/", log: quiet}
			done := make(chan error, 1)
			go func() { done <- streams(t.Context(), l, maxStreams, p.serve) }()
			c := client{t, dial(t, l)}
			c.send(first.t, first.payload)
			if _, _, last, end := c.rest(); last != api.FrameError || !strings.Contains(end, "shell request") {
				t.Errorf("last frame %d %q", last, end)
			}
			l.Close()
			<-done
		})
	}
}
