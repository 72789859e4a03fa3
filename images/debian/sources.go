// Package debian takes packages from the Debian archive that the machine is configured for, of the suite and architecture
// that an image wants: it derives the sources, lets apt resolve, download and verify, and opens the packages as file lists
// that images/kernel and images/rootfs choose from. No maintainer script ever runs.
package debian

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Suite is the Debian suite that images are made of: 13, the current stable.
const Suite = "trixie"

// keyring returns the file of the Debian archive's keys, which the package debian-archive-keyring owns. An entry of the
// machine's own may name only the keys of the machine's suite.
func keyring() string {
	const name = "/usr/share/keyrings/debian-archive-keyring"
	if _, err := os.Stat(name + ".pgp"); err == nil { // Debian 13 and later
		return name + ".pgp"
	}
	return name + ".gpg"
}

// source is one entry of apt's configuration.
type source struct {
	uris       []string
	suites     []string
	components []string
	signedBy   string
}

// MachineSuite returns the suite of the machine itself: VERSION_CODENAME of os-release(5).
func MachineSuite(osRelease []byte) (string, error) {
	for line := range strings.Lines(string(osRelease)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok && name != "" {
			return strings.Trim(name, `"'`), nil
		}
	}
	return "", fmt.Errorf("find the machine's suite: os-release has no VERSION_CODENAME")
}

// Sources returns a deb822 sources file that gives suite want from the archives which the apt configuration in etc (as a
// rule /etc/apt) gives the suite have from.
func Sources(etc, have, want string) ([]byte, error) {
	var all []source
	files, _ := filepath.Glob(filepath.Join(etc, "sources.list.d", "*"))
	for _, name := range append(files, filepath.Join(etc, "sources.list")) {
		data, err := os.ReadFile(name)
		switch {
		case os.IsNotExist(err):
		case err != nil:
			return nil, err
		case strings.HasSuffix(name, ".sources"):
			all = append(all, parseDeb822(data)...)
		case strings.HasSuffix(name, ".list"):
			all = append(all, parseOneLine(data)...)
		}
	}
	out := rewrite(all, have, want)
	if len(out) == 0 {
		return nil, fmt.Errorf("find Debian's archive: no entry of %s gives the suite %s with component main (images are built on Debian)", etc, have)
	}
	return out, nil
}

// rewrite keeps the entries of Debian's own archive and renames their suites.
func rewrite(all []source, have, want string) []byte {
	var out bytes.Buffer
	seen := map[string]bool{}
	for _, s := range all {
		if !slices.Contains(s.components, "main") || s.signedBy != "" && !strings.Contains(s.signedBy, "debian-archive") {
			continue
		}
		for _, uri := range s.uris {
			for _, suite := range s.suites {
				rest, ok := strings.CutPrefix(suite, have)
				if key := uri + " " + suite; !ok || rest != "" && rest != "-updates" && rest != "-security" || seen[key] {
					continue
				} else {
					seen[key] = true
				}
				fmt.Fprintf(&out, "Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n", uri, want+rest, keyring())
			}
		}
	}
	return out.Bytes()
}

// parseDeb822 reads a .sources file (sources.list(5), "DEB822-STYLE FORMAT"). What it cannot use, it leaves out.
func parseDeb822(data []byte) []source {
	var out []source
	for _, fields := range stanzas(data) {
		if !slices.Contains(strings.Fields(fields["types"]), "deb") || strings.EqualFold(fields["enabled"], "no") {
			continue
		}
		out = append(out, source{
			uris:       strings.Fields(fields["uris"]),
			suites:     strings.Fields(fields["suites"]),
			components: strings.Fields(fields["components"]),
			signedBy:   fields["signed-by"],
		})
	}
	return out
}

// stanzas splits deb822 text into its stanzas, field names in lower case, continuation lines joined by newlines.
func stanzas(data []byte) []map[string]string {
	var out []map[string]string
	var now map[string]string
	last := ""
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case strings.TrimSpace(line) == "":
			now = nil
		case strings.HasPrefix(line, "#"):
		case line[0] == ' ' || line[0] == '\t':
			if now != nil && last != "" {
				now[last] += "\n" + strings.TrimSpace(line)
			}
		default:
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				last = ""
				continue
			}
			if now == nil {
				now = map[string]string{}
				out = append(out, now)
			}
			last = strings.ToLower(strings.TrimSpace(name))
			now[last] = strings.TrimSpace(value)
		}
	}
	return out
}

// parseOneLine reads a .list file (sources.list(5), "ONE-LINE-STYLE FORMAT").
func parseOneLine(data []byte) []source {
	var out []source
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb ")
		if !ok {
			continue
		}
		var s source
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			options, after, _ := strings.Cut(rest[1:], "]")
			for _, option := range strings.Fields(options) {
				if value, ok := strings.CutPrefix(option, "signed-by="); ok {
					s.signedBy = value
				}
			}
			rest = after
		}
		fields := strings.Fields(rest)
		if len(fields) < 3 {
			continue
		}
		s.uris, s.suites, s.components = fields[:1], fields[1:2], fields[2:]
		out = append(out, s)
	}
	return out
}
