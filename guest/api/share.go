package api

import (
	"fmt"
	"path"
	"strings"
	"unicode/utf8"
)

// ownPaths are the places of the guest's own system: a share at, in or above one of them would hide what runs the engine.
var ownPaths = []string{
	"/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/usr", "/etc", "/proc", "/sys", "/dev", "/run", "/data",
	"/var/lib/docker", "/var/lib/containerd", "/var/run", "/var/lock",
}

// freePaths are places in the guest's own that are nobody's there, and people's on a host.
var freePaths = []string{"/run/media"} // where desktops mount sticks

// maxPath is PATH_MAX without its end (linux/limits.h).
const maxPath = 4095

// Check says whether a guest can have the share. The guest refuses one that fails; the host asks before it comes to that.
func (s Share) Check() error {
	if s.Tag == "" || len(s.Tag) > 255 || strings.ContainsFunc(s.Tag, noTag) {
		return fmt.Errorf("share %q has the tag %q: want small letters, digits and dashes", s.Path, s.Tag)
	}
	switch {
	case !path.IsAbs(s.Path) || path.Clean(s.Path) != s.Path:
		return fmt.Errorf("share %q is no clean absolute path", s.Path)
	case !utf8.ValidString(s.Path) || strings.ContainsRune(s.Path, 0):
		return fmt.Errorf("share %q is no text in UTF-8", s.Path)
	case len(s.Path) > maxPath:
		return fmt.Errorf("share %.80q… has %d bytes: at most %d", s.Path, len(s.Path), maxPath)
	}
	for _, free := range freePaths {
		if within(s.Path, free) {
			return nil
		}
	}
	for _, own := range ownPaths {
		if within(s.Path, own) || within(own, s.Path) {
			return fmt.Errorf("cannot share %s: the machine's own system is at %s", s.Path, own)
		}
	}
	return nil
}

func noTag(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' }

// within says whether the clean path p is dir or below it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}
