package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/coracle-engine/coracle/host/api"
)

// AddShares puts texts, as api.ParseShare reads them, among the shares of s. One whose path is there already replaces it. An error
// of class api.CodeShare says that there is no such directory.
func AddShares(s api.Settings, texts []string) (api.Settings, error) {
	row, err := find("shares", s)
	if err != nil || len(texts) == 0 {
		return s, err
	}
	old := s
	if err := row.add(&s, texts); err != nil {
		return old, err
	}
	if err := newShares(old, s); err != nil {
		return old, err
	}
	return s, nil
}

// newShares wants the directories that s shares and old did not to be there: else somebody mistyped.
func newShares(old, s api.Settings) error {
	known := map[string]bool{}
	for _, sh := range old.Shares {
		known[sh.Path] = true
	}
	for _, sh := range s.Shares {
		if reason := missing(sh.Path); reason != "" && !known[sh.Path] {
			return &api.Error{Code: api.CodeShare, Message: "cannot share " + sh.Path + ": " + reason, Hint: "give an existing directory"}
		}
	}
	return nil
}

// missing is why path cannot be shared now, empty where it can.
func missing(path string) string {
	st, err := os.Stat(path)
	switch {
	case os.IsNotExist(err):
		return "there is no such directory"
	case err != nil:
		return fmt.Sprintf("it cannot be looked at: %v", err)
	case !st.IsDir():
		return "it is not a directory"
	}
	return ""
}

// guestPaths are the guest's own: a share at one of them, below one or above one would take something from it that it
// needs.
var guestPaths = []string{
	"/bin", "/boot", "/coracle", "/data", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys", "/usr",
	"/var/cache", "/var/lib", "/var/lock", "/var/log", "/var/run",
}

func checkShares(s api.Settings, h Host) error {
	seen := map[string]bool{}
	for _, sh := range s.Shares {
		const hint = "share a directory below it, or another one"
		p := sh.Path
		switch {
		case !filepath.IsAbs(p) || strings.ContainsRune(p, 0):
			return bad("give an absolute path", "cannot share %q: it is not an absolute path", p)
		case filepath.Clean(p) != p:
			return bad("write "+filepath.Clean(p), "cannot share %s: the path is not in its shortest form", p)
		case seen[p]:
			return bad("leave one of the two out", "%s is shared twice", p)
		case filepath.Dir(p) == p:
			return bad("share the directories that containers need, such as your home", "cannot share %s: the machine has its own", p)
		}
		seen[p] = true
		for _, own := range guestPaths {
			if below(p, own) {
				return bad("copy what containers need to another directory, and share that", "cannot share %s: the machine has its own %s", p, own)
			}
			if below(own, p) {
				return bad(hint, "cannot share %s: the machine has its own %s", p, own)
			}
		}
		if h.Coracle != "" && (below(p, h.Coracle) || below(real(p), real(h.Coracle))) {
			return bad("share another directory", "cannot share %s: Coracle keeps its machines there", p)
		}
	}
	return nil
}

// below is whether path is dir or beneath it.
func below(path, dir string) bool {
	rest, found := strings.CutPrefix(path, strings.TrimSuffix(dir, string(filepath.Separator)))
	return found && (rest == "" || os.IsPathSeparator(rest[0]))
}

// real is path without symbolic links, as far as there is such a path.
func real(path string) string {
	for rest := ""; ; {
		if r, err := filepath.EvalSymlinks(path); err == nil {
			return filepath.Join(r, rest)
		}
		if filepath.Dir(path) == path {
			return filepath.Join(path, rest)
		}
		path, rest = filepath.Dir(path), filepath.Join(filepath.Base(path), rest)
	}
}

// Missing has an error of class api.CodeShare for each share of s that cannot be shared now. A machine starts without them.
func Missing(s api.Settings) []*api.Error {
	var all []*api.Error
	for _, sh := range s.Shares {
		if reason := missing(sh.Path); reason != "" {
			all = append(all, &api.Error{Code: api.CodeShare, Message: sh.Path + " is not shared: " + reason,
				Hint: "make it, or run `coracle config remove shares " + sh.Path + "`"})
		}
	}
	return all
}
