//go:build linux

package engine

import (
	"bytes"
	"io"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

const (
	maxSaid = 40   // lines kept
	maxLine = 1000 // bytes of each
)

// said passes on what a program writes and keeps its newest lines.
type said struct {
	to io.Writer

	mu    sync.Mutex
	lines []string
	rest  []byte // of a line whose end has not come
}

// Write implements io.Writer.
func (s *said) Write(p []byte) (int, error) {
	s.keep(p)
	return s.to.Write(p)
}

func (s *said) keep(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(p) > 0 {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		if room := maxLine - len(s.rest); room > 0 {
			s.rest = append(s.rest, line[:min(room, len(line))]...)
		}
		if !whole {
			return
		}
		s.lines = append(s.lines, string(s.rest))
		if len(s.lines) > maxSaid {
			s.lines = append(s.lines[:0], s.lines[len(s.lines)-maxSaid:]...)
		}
		s.rest, p = s.rest[:0], rest
	}
}

// forget begins anew.
func (s *said) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines, s.rest = nil, nil
}

// reason is what of the kept lines tells of a failure; empty where none does.
func (s *said) reason() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return reason(s.lines)
}

// maxReason is how many lines a reason has.
const maxReason = 3

// field finds level, msg and error in a line of dockerd's log (logrus's text format).
var field = regexp.MustCompile(`(?:^| )(level|msg|error)=("(?:[^"\\]|\\.)*"|\S*)`)

// reason picks errors out of dockerd's log, and lines that are no log at all: what ends a start early is said so.
func reason(lines []string) string {
	var found []string
	for _, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		fields := map[string]string{}
		for _, m := range field.FindAllStringSubmatch(line, -1) {
			value := m[2]
			if plain, err := strconv.Unquote(value); err == nil {
				value = plain
			}
			fields[m[1]] = value
		}
		switch fields["level"] {
		case "":
			found = append(found, line)
		case "error", "fatal", "panic":
			text := fields["msg"]
			if fields["error"] != "" {
				text += ": " + fields["error"]
			}
			found = append(found, text)
		}
	}
	return strings.Join(found[max(0, len(found)-maxReason):], "; ")
}
