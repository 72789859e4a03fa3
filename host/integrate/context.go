// Package integrate makes a machine known to the docker CLI: it writes the machine's docker context and selects it, and
// takes back both. The user's docker directory is not ours: what cannot be read is left as it is, what is not ours is not
// touched, and a failure here never keeps a machine from starting. Its neighbour is the host process.
package integrate

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Context is a machine's docker context (docker's docs: "Docker contexts", docker/cli cli/context/store).
type Context struct {
	DockerDir   string // docker's configuration directory; see DockerDir
	Name        string
	Description string
	Host        string // as DOCKER_HOST spells it
	Former      string // the file where the context selected before ours is remembered
}

// DockerDir is docker's configuration directory: $DOCKER_CONFIG, else .docker in home.
func DockerDir(getenv func(string) string, home string) string {
	if d := getenv("DOCKER_CONFIG"); d != "" {
		return d
	}
	return filepath.Join(home, ".docker")
}

// meta is a context's meta.json.
type meta struct {
	Name      string              `json:"Name"`
	Metadata  map[string]any      `json:"Metadata"`
	Endpoints map[string]endpoint `json:"Endpoints"`
}

type endpoint struct {
	Host          string `json:"Host"`
	SkipTLSVerify bool   `json:"SkipTLSVerify"`
}

func (c Context) metaDir() string { return metaDir(c.DockerDir, c.Name) }

func metaDir(dockerDir, name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(dockerDir, "contexts", "meta", hex.EncodeToString(sum[:]))
}

// exists is whether docker would find a context of that name.
func exists(dockerDir, name string) bool {
	_, err := os.Stat(filepath.Join(metaDir(dockerDir, name), "meta.json"))
	return err == nil
}

// host is where the context of our name leads now; empty where there is none that can be read.
func (c Context) host() string {
	data, err := os.ReadFile(filepath.Join(c.metaDir(), "meta.json"))
	var m meta
	if err != nil || json.Unmarshal(data, &m) != nil {
		return ""
	}
	return m.Endpoints["docker"].Host
}

// Set writes the context and selects it, remembering which one was selected. Calling it again changes nothing. An error
// says what was not done; docker's files are whole all the same.
func (c Context) Set() error {
	if other := c.host(); other != "" && other != c.Host && alive(other) {
		return fmt.Errorf("docker context %q leads to %s already: left as it is", c.Name, other)
	}
	m := meta{Name: c.Name, Metadata: map[string]any{"Description": c.Description}, Endpoints: map[string]endpoint{"docker": {Host: c.Host}}}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.metaDir(), 0o700); err != nil {
		return fmt.Errorf("make docker context: %w", err)
	}
	if err := replace(filepath.Join(c.metaDir(), "meta.json"), data, 0o644); err != nil {
		return fmt.Errorf("make docker context: %w", err)
	}
	if err := again(c.choose); err != nil {
		return fmt.Errorf("select docker context %q: %w", c.Name, err)
	}
	return nil
}

// alive is whether a context's host can still be meant: all but a unix socket that is gone.
func alive(host string) bool {
	path, unix := strings.CutPrefix(host, "unix://")
	if !unix {
		return true
	}
	_, err := os.Stat(path)
	return err == nil
}

func (c Context) choose() error {
	data, err := c.readConfig()
	if err != nil {
		return err
	}
	current, err := currentContext(data)
	if err != nil || current == c.Name {
		return err // selected before a crash: what was remembered then still holds
	}
	if err := replace(c.Former, []byte(current), 0o600); err != nil {
		return err
	}
	return c.writeConfig(data, c.Name)
}

// Unset selects the former context where ours is still selected (docker's default where the former one is gone), and
// removes ours where it still leads to this machine. Nothing is left that leads nowhere. It may be called without Set.
func (c Context) Unset() error {
	if other := c.host(); other != "" && other != c.Host {
		return nil // somebody else's by now
	}
	if err := again(c.release); err != nil {
		return fmt.Errorf("select former docker context: %w", err) // keep ours: a selected context that is gone breaks docker
	}
	if err := os.RemoveAll(c.metaDir()); err != nil {
		return fmt.Errorf("remove docker context: %w", err)
	}
	if err := os.Remove(c.Former); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget former docker context: %w", err)
	}
	return nil
}

func (c Context) release() error {
	data, err := c.readConfig()
	if err != nil {
		return err
	}
	if current, err := currentContext(data); err != nil || current != c.Name {
		return nil // an unreadable file selects nothing
	}
	former, err := os.ReadFile(c.Former)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	name := string(former)
	if !exists(c.DockerDir, name) {
		name = ""
	}
	return c.writeConfig(data, name)
}

func (c Context) configPath() string { return filepath.Join(c.DockerDir, "config.json") }

func (c Context) readConfig() ([]byte, error) {
	data, err := os.ReadFile(c.configPath())
	if errors.Is(err, fs.ErrNotExist) {
		return []byte("{}\n"), nil
	}
	return data, err
}

// errChanged says that somebody else, such as `docker login`, wrote docker's config.json while we were about to.
var errChanged = errors.New("docker's config.json is being changed by another program")

// again does f anew, on what the other wrote, where it found errChanged.
func again(f func() error) error {
	for range 9 {
		if err := f(); !errors.Is(err, errChanged) {
			return err
		}
	}
	return f()
}

// writeConfig keeps the file's mode, and where it is a link, the link. It returns errChanged where the file is no longer old.
func (c Context) writeConfig(old []byte, current string) error {
	data, err := setCurrentContext(old, current)
	if err != nil {
		return err
	}
	if bytes.Equal(data, old) {
		return nil
	}
	path, mode := c.configPath(), fs.FileMode(0o600)
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if st, err := os.Stat(path); err == nil {
		mode = st.Mode().Perm()
	}
	return replaceIf(path, data, mode, func() error {
		if now, err := c.readConfig(); err != nil || !bytes.Equal(now, old) {
			return errors.Join(err, errChanged)
		}
		return nil
	})
}

// replace writes a file whole or not at all, a loss of power included.
func replace(path string, data []byte, mode fs.FileMode) error {
	return replaceIf(path, data, mode, func() error { return nil })
}

// replaceIf is replace, with a last look before the old file goes.
func replaceIf(path string, data []byte, mode fs.FileMode, check func() error) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".coracle-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Chmod(f.Name(), mode)
	}
	if err == nil {
		err = check()
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
