package share

import (
	"path"
	"slices"
	"strings"
)

// Secrets are the places, beneath the root of a share or the user's home, that hold credentials. A share does not show them
// unless it says so.
var Secrets = []string{
	".aws", ".azure", ".config/gcloud", ".config/gh", ".config/hub", ".config/op", ".gem/credentials", ".git-credentials",
	".gnupg", ".kube", ".local/share/keyrings", ".netrc", ".oci", ".password-store", ".pgpass", ".ssh",
	".terraform.d/credentials.tfrc.json", ".vault-token",
}

// HomeSecrets are the same beneath the user's home alone: a project that is shared by itself may well have these names at its
// root, for other things.
var HomeSecrets = []string{".docker", ".npmrc", ".pypirc"}

// secrets are the hidden paths of one share, relative to its root, in lower case: host file systems may not tell the cases
// apart.
type secrets struct {
	paths []string
	last  map[string]bool // last elements of paths: what most names are told apart by
}

// hide lists what a share rooted at root does not show; home is the user's.
func hide(root, home string) secrets {
	s := secrets{last: map[string]bool{}}
	add := func(p string) {
		s.paths = append(s.paths, strings.ToLower(p))
		s.last[strings.ToLower(path.Base(p))] = true
	}
	prefix := strings.TrimSuffix(path.Clean(root), "/") + "/"
	for _, secret := range Secrets {
		add(secret)
	}
	for _, secret := range slices.Concat(Secrets, HomeSecrets) {
		if rest, ok := strings.CutPrefix(path.Join(home, secret), prefix); ok && home != "" {
			add(rest)
		}
	}
	return s
}

// hides says whether name may not be seen in the directory that dir returns the path of.
func (s secrets) hides(dir func() string, name string) bool {
	name = strings.ToLower(name)
	if !s.last[name] {
		return false
	}
	full := strings.ToLower(path.Join(dir(), name))
	for _, p := range s.paths {
		if p == full {
			return true
		}
	}
	return false
}

// pins says whether a hidden path lies in or at the given one, which is then not to be moved: what is hidden by its path would
// be seen elsewhere.
func (s secrets) pins(p string) bool {
	p = strings.ToLower(p) + "/"
	for _, secret := range s.paths {
		if strings.HasPrefix(secret+"/", p) {
			return true
		}
	}
	return false
}
