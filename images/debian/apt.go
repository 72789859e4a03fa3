package debian

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Archive is one suite for one architecture, with apt's state for it in a directory of its own.
type Archive struct {
	dir, arch, suite string
	sources          []byte
}

// Locked is a package as apt resolved it from signed indexes.
type Locked struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	File    string `json:"file"`
	SHA256  string `json:"sha256"`
}

// Open prepares the archive of suite for arch (a Debian architecture, which GOARCH spells alike) from the apt
// configuration in etc of a machine that runs Debian's suite machine. State and packages are kept below cache.
func Open(cache, etc, machine, suite, arch string) (*Archive, error) {
	sources, err := Sources(etc, machine, suite)
	if err != nil {
		return nil, err
	}
	cache, err = filepath.Abs(cache) // apt takes relative directories as relative to its own
	if err != nil {
		return nil, err
	}
	return &Archive{dir: filepath.Join(cache, "debian", suite+"-"+arch), arch: arch, suite: suite, sources: sources}, nil
}

// Resolve returns names and all that they depend on, from the last resolution of the same names where there is one and
// refresh is false, else from the archive's newest state.
func (a *Archive) Resolve(ctx context.Context, names []string, refresh bool) ([]Locked, error) {
	sum := sha256.Sum256(fmt.Append(nil, names, string(a.sources)))
	lock := filepath.Join(a.dir, "lock-"+hex.EncodeToString(sum[:8])+".json")
	var out []Locked
	if data, err := os.ReadFile(lock); err == nil && !refresh && json.Unmarshal(data, &out) == nil && len(out) > 0 {
		return out, nil
	}
	if err := a.prepare(); err != nil {
		return nil, fmt.Errorf("prepare apt's state: %w", err)
	}
	if _, err := a.apt(ctx, a.dir, "update", "-qq"); err != nil {
		return nil, err
	}
	uris, err := a.apt(ctx, a.dir, append([]string{"install", "-qq", "-y", "--print-uris"}, names...)...)
	if err != nil {
		return nil, err
	}
	if out, err = parseURIs(uris); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(out, "", "\t")
	if err != nil {
		return nil, err
	}
	return out, os.WriteFile(lock, data, 0o644)
}

func (a *Archive) prepare() error {
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial", "etc", "archives"} {
		if err := os.MkdirAll(filepath.Join(a.dir, dir), 0o755); err != nil {
			return err
		}
	}
	// An empty status says that nothing is installed, so that all dependencies are listed.
	return errors.Join(os.WriteFile(filepath.Join(a.dir, "state/status"), nil, 0o644),
		os.WriteFile(filepath.Join(a.dir, "state/apt.conf"), []byte(noHooks), 0o644),
		os.WriteFile(filepath.Join(a.dir, "etc/debian.sources"), a.sources, 0o644))
}

// noHooks takes back what the machine runs after an update of its own state: this is none, and we may not be root.
const noHooks = `#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
`

// apt runs apt-get in dir with the archive's own state. The machine's apt.conf (its proxy, for one) stays in force.
func (a *Archive) apt(ctx context.Context, dir string, args ...string) ([]byte, error) {
	options := []string{
		"Dir::State=" + a.dir + "/state", "Dir::State::status=" + a.dir + "/state/status", "Dir::Cache=" + a.dir + "/cache",
		"Dir::Etc::sourcelist=/dev/null", "Dir::Etc::sourceparts=" + a.dir + "/etc",
		"Dir::Etc::preferences=/dev/null", "Dir::Etc::preferencesparts=/dev/null",
		"APT::Architecture=" + a.arch, "APT::Architectures=" + a.arch, "APT::Install-Recommends=0",
		"APT::Sandbox::User=root", "Acquire::Languages=none", "Acquire::ForceHash=SHA256", "Acquire::Retries=3",
		"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false", "APT::Update::Error-Mode=any",
		"APT::Get::AllowUnauthenticated=0",
	}
	full := []string{"-c", a.dir + "/state/apt.conf"}
	for _, o := range options {
		full = append(full, "-o", o)
	}
	cmd := exec.CommandContext(ctx, "apt-get", append(full, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("run apt-get %s for %s on %s: %w\n%s", args[0], a.suite, a.arch, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

var uriLine = regexp.MustCompile(`^'[^']*' (([a-z0-9][a-z0-9.+-]*)_([A-Za-z0-9.+~%-]+)_[a-z0-9]+\.deb) [0-9]+ SHA256:([0-9a-f]{64})$`)

// parseURIs reads what apt-get --print-uris writes: 'URI' FILE SIZE SHA256:DIGEST.
func parseURIs(out []byte) ([]Locked, error) {
	var all []Locked
	for line := range strings.Lines(string(out)) {
		m := uriLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			return nil, fmt.Errorf("read apt's answer: strange line %q", strings.TrimSpace(line))
		}
		version, err := url.PathUnescape(m[3])
		if err != nil {
			return nil, fmt.Errorf("read version in %q: %w", m[1], err)
		}
		all = append(all, Locked{Name: m[2], Version: version, File: m[1], SHA256: m[4]})
	}
	slices.SortFunc(all, func(x, y Locked) int { return strings.Compare(x.Name, y.Name) })
	return all, nil
}

// Fetch downloads what is not in the cache yet and opens all packages. Every one has the digest that its lock names.
func (a *Archive) Fetch(ctx context.Context, locked []Locked) ([]*Package, error) {
	var missing []string
	for _, l := range locked {
		if !a.cached(l) {
			missing = append(missing, l.Name+"="+l.Version)
		}
	}
	archives := filepath.Join(a.dir, "archives")
	if len(missing) > 0 {
		if err := a.prepare(); err != nil {
			return nil, err
		}
		if _, err := a.apt(ctx, archives, append([]string{"download", "-qq"}, missing...)...); err != nil {
			return nil, fmt.Errorf("%w (-refresh resolves anew, if the archive has moved on)", err)
		}
	}
	var out []*Package
	for _, l := range locked {
		if !a.cached(l) {
			if err := unpack(ctx, filepath.Join(archives, l.File), a.tar(l), l.SHA256); err != nil {
				return nil, err
			}
		}
		p, err := index(l, a.tar(l))
		if err != nil {
			return nil, fmt.Errorf("index %s: %w", l.File, err)
		}
		out = append(out, p)
	}
	return out, nil
}

// Extract resolves one package, without what it depends on, writes its files below a directory of its own and returns both.
func (a *Archive) Extract(ctx context.Context, name string, refresh bool) (*Package, string, error) {
	locked, err := a.Resolve(ctx, []string{name}, refresh)
	if err != nil {
		return nil, "", err
	}
	at := slices.IndexFunc(locked, func(l Locked) bool { return l.Name == name })
	if at < 0 {
		return nil, "", fmt.Errorf("find %s in what apt resolved", name)
	}
	all, err := a.Fetch(ctx, locked[at:at+1])
	if err != nil {
		return nil, "", err
	}
	dir := filepath.Join(a.dir, "extracted", locked[at].SHA256)
	if _, err := os.Stat(dir); err == nil {
		return all[0], dir, nil
	}
	temp := dir + ".part"
	if err := errors.Join(os.RemoveAll(temp), os.MkdirAll(temp, 0o755)); err != nil {
		return nil, "", err
	}
	cmd := exec.CommandContext(ctx, "tar", "-xf", a.tar(locked[at]), "-C", temp, "--no-same-owner")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, "", fmt.Errorf("extract %s: %w\n%s", name, err, out)
	}
	return all[0], dir, os.Rename(temp, dir)
}

// tar names the unpacked form of l by the digest of the package that was verified before it was unpacked.
func (a *Archive) tar(l Locked) string { return filepath.Join(a.dir, "archives", l.SHA256+".tar") }

func (a *Archive) cached(l Locked) bool {
	_, err := os.Stat(a.tar(l))
	return err == nil
}

// unpack verifies the package deb and writes its files to the tar archive to, whole or not at all. It removes deb.
func unpack(ctx context.Context, deb, to, digest string) error {
	f, err := os.Open(deb)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != digest {
		return fmt.Errorf("verify %s: digest is %s, the archive's signed index says %s", deb, got, digest)
	}
	temp := to + ".part"
	out, err := os.Create(temp)
	if err != nil {
		return err
	}
	defer out.Close()
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("unpack %s: %w", deb, err)
	}
	if err := out.Close(); err != nil {
		return err
	}
	return errors.Join(os.Rename(temp, to), os.Remove(deb))
}
