package dockerproxy

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
)

// Shares is the Policy of a machine that has some of the host's directories, each at its own place. Its zero value shares
// nothing. A source below a share passes as it is, as do the machine's own places (see places); the engine's socket becomes
// the engine's own. Where a source reaches a share by another name, as /tmp does on macOS whose real name is /private/tmp,
// the engine gets the share's name for it, and docker inspect shows that one: answers are not rewritten.
type Shares struct {
	// Machine is the machine's name, for messages.
	Machine string
	// Command shares the directory that follows it, for messages: "coracle config add shares --machine work". Empty: that of
	// the default machine.
	Command string
	// Sockets are where clients on the host find the engine, beside /var/run/docker.sock: the machine's own socket.
	Sockets []string
	// Hidden says of a clean path whether it lies in a directory that is left out of its share, and what a user may do about
	// it: a command, or nothing where nothing can be done. Nil: nothing is hidden.
	Hidden func(path string) (dir, remedy string)

	mu   sync.RWMutex
	list []string
}

// SetShares replaces the directories that the machine has. Paths are absolute.
func (s *Shares) SetShares(paths []string) {
	list := make([]string, 0, len(paths))
	for _, p := range paths {
		list = append(list, path.Clean(p))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = list
}

// Source is Policy's.
func (s *Shares) Source(source string) (string, error) {
	s.mu.RLock()
	shares := s.list
	s.mu.RUnlock()
	p := path.Clean(source)
	if withoutVar(p) == EngineSocket {
		return spelled(source, p), nil
	}
	if slices.Contains(s.Sockets, p) {
		return EngineSocket, nil
	}
	if err := s.hidden(source, p); err != nil {
		return "", err
	}
	if shareOf(shares, p) != "" {
		return spelled(source, p), s.leads(source, p, shares)
	}
	if inMachine(p) {
		return spelled(source, p), nil
	}
	to := resolve(p)
	if slices.ContainsFunc(s.Sockets, func(socket string) bool { return resolve(socket) == to }) {
		return EngineSocket, nil
	}
	if to = locate(shares, to); to == "" {
		return "", s.notShared(source, p)
	}
	return to, s.hidden(source, to)
}

// spelled keeps the user's spelling where the engine understands it as we do: it resolves ".." only after links.
func spelled(source, clean string) string {
	if slices.Contains(strings.Split(source, "/"), "..") {
		return clean
	}
	if strings.TrimRight(source, "/") == clean {
		return source
	}
	return clean
}

func shareOf(shares []string, p string) string {
	for _, share := range shares {
		if below(p, share) {
			return share
		}
	}
	return ""
}

// leads refuses a path below a share that leads out of all of them through a link: the machine follows links too, and would
// find another thing there than the host, or nothing.
func (s *Shares) leads(source, p string, shares []string) error {
	to, err := filepath.EvalSymlinks(p)
	if err != nil || to == p {
		return nil // new, or for the engine to find out
	}
	if err := s.hidden(source, to); err != nil {
		return err
	}
	if inMachine(to) || locate(shares, to) != "" || slices.Contains(s.Sockets, to) {
		return nil
	}
	return fmt.Errorf("%s leads to %s: %w", shown(source), shown(to), s.notShared(to, to))
}

// locate is the name by which the machine has p, whose links are resolved, or empty. Names differ where a share is itself
// reached through a link, and where the host's file system ignores case.
func locate(shares []string, p string) string {
	if shareOf(shares, p) != "" {
		return p
	}
	for dir := p; ; dir = path.Dir(dir) {
		if info, err := os.Stat(dir); err == nil {
			for _, share := range shares {
				if i, err := os.Stat(share); err == nil && os.SameFile(i, info) {
					return under(share, p, dir)
				}
			}
		}
		if dir == "/" || dir == "." {
			return ""
		}
	}
}

// resolve follows the links of p as far as it exists.
func resolve(p string) string {
	for dir := p; ; dir = path.Dir(dir) {
		if to, err := filepath.EvalSymlinks(dir); err == nil {
			return under(filepath.ToSlash(to), p, dir)
		}
		if dir == "/" || dir == "." {
			return p
		}
	}
}

func (s *Shares) hidden(source, p string) error {
	if s.Hidden == nil {
		return nil
	}
	dir, remedy := s.Hidden(p)
	switch {
	case dir == "":
		return nil
	case remedy == "":
		return fmt.Errorf("%s is not shared with machine %q: no machine gets what is in %s", shown(source), s.Machine, shown(dir))
	}
	return fmt.Errorf("%s is not shared with machine %q: %s is left out because it may hold keys; to include it: %s",
		shown(source), s.Machine, shown(dir), remedy)
}

// notShared is the error for a source that the machine does not have.
func (s *Shares) notShared(source, p string) error {
	dir := nearest(p)
	if slices.Contains(systems, dir) {
		return fmt.Errorf("%s is not shared with machine %q, which has a system of its own in %s: copy it to a directory that is shared",
			shown(source), s.Machine, dir)
	}
	command := s.Command
	if command == "" {
		command = "coracle config add shares"
	}
	return fmt.Errorf("%s is not shared with machine %q; to share it: %s %s", shown(source), s.Machine, command, quote(dir))
}

// nearest is the directory to share so that the machine has p: p itself, or the nearest one that there is and that is not
// the system's.
func nearest(p string) string {
	dir := p
	for dir != "/" {
		info, err := os.Stat(dir)
		if err == nil && info.IsDir() {
			break
		}
		if dir = path.Dir(dir); err == nil {
			return dir // of a file
		}
	}
	if slices.Contains(systems, dir) {
		return p
	}
	return dir
}

// shown is p for a message. A terminal must not take it for a command.
func shown(p string) string {
	if strings.ContainsFunc(p, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(p)
	}
	return p
}

// quote is p as a shell's word.
func quote(p string) string {
	special := func(r rune) bool {
		return r < 0x80 && !strings.ContainsRune("/._-+@%:,=", r) && !unicode.In(r, unicode.L, unicode.Nd)
	}
	switch {
	case shown(p) != p:
		return shown(p)
	case strings.IndexFunc(p, special) < 0:
		return p
	}
	return "'" + strings.ReplaceAll(p, "'", `'\''`) + "'"
}
