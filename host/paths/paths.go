// Package paths knows where things are on the host: Coracle's home, a machine's files, the images, the programs that come
// with us. It only computes names, touches no file, and takes the operating system as an argument, so that one table test
// covers all. Everything on the host that opens a file asks it first.
package paths

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// MaxSocket is the longest path of a unix socket that works everywhere: macOS's sun_path holds 104 bytes with its zero.
const MaxSocket = 103

// DefaultMachine is the machine meant where none is named.
const DefaultMachine = "default"

// ErrName is the class of errors about machine names.
var ErrName = errors.New("invalid machine name")

// ErrTooLong is the class of errors about socket paths beyond MaxSocket.
var ErrTooLong = errors.New("path is too long for a socket")

// Home is Coracle's directory: $CORACLE_HOME, else %LOCALAPPDATA%\Coracle on Windows and ~/.coracle elsewhere.
func Home(goos string, getenv func(string) string) (string, error) {
	if h := getenv("CORACLE_HOME"); h != "" {
		if !isAbs(goos, h) {
			return "", fmt.Errorf("CORACLE_HOME is %q: want an absolute path", h)
		}
		return h, nil
	}
	if goos == "windows" {
		if d := getenv("LOCALAPPDATA"); d != "" {
			return d + `\Coracle`, nil
		}
		return "", errors.New("LOCALAPPDATA is not set: set it or CORACLE_HOME")
	}
	if d := getenv("HOME"); d != "" {
		return path.Join(d, ".coracle"), nil
	}
	return "", errors.New("HOME is not set: set it or CORACLE_HOME")
}

func isAbs(goos, p string) bool {
	if goos == "windows" {
		return len(p) >= 3 && p[1] == ':' && (p[2] == '\\' || p[2] == '/') || strings.HasPrefix(p, `\\`)
	}
	return path.IsAbs(p)
}

var nameRE = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// CheckName says whether name can name a machine: up to 32 lower-case letters, digits and inner hyphens, so that it is a
// file name, a host name and a docker context's name alike.
func CheckName(name string) error {
	if !nameRE.MatchString(name) {
		return fmt.Errorf("%w %q: want up to 32 lower-case letters, digits and inner hyphens", ErrName, name)
	}
	return nil
}

// Machine is where one machine's files are.
type Machine struct {
	Name string
	Dir  string
}

// ForMachine checks name, and that the sockets' paths under home fit.
func ForMachine(home, name string) (Machine, error) {
	if err := CheckName(name); err != nil {
		return Machine{}, err
	}
	m := Machine{Name: name, Dir: filepath.Join(Machines(home), name)}
	for _, s := range []string{m.DockerSocket(), m.APISocket(), filepath.Join(m.RunDir(), "vsock.sock")} {
		if len(s) > MaxSocket {
			return Machine{}, fmt.Errorf("%w: %s has %d bytes, at most %d: set CORACLE_HOME to a shorter directory", ErrTooLong, s, len(s), MaxSocket)
		}
	}
	return m, nil
}

// Machines is the directory with one directory for each machine.
func Machines(home string) string { return filepath.Join(home, "machines") }

// Images is the directory with one directory for each installed image, named by its digest.
func Images(home string) string { return filepath.Join(home, "images") }

// Config is the machine's settings file.
func (m Machine) Config() string { return filepath.Join(m.Dir, "config.yaml") }

// APISocket is where the machine's host process answers host/api.
func (m Machine) APISocket() string { return filepath.Join(m.Dir, "api.sock") }

// DockerSocket is where the machine's Docker Engine answers.
func (m Machine) DockerSocket() string { return filepath.Join(m.Dir, "docker.sock") }

// DataDisk is the machine's raw disk, with all images, containers and volumes.
func (m Machine) DataDisk() string { return filepath.Join(m.Dir, "data.img") }

// Owners is the directory of what containers said of the owners and modes of the host's files.
func (m Machine) Owners() string { return filepath.Join(m.Dir, "owners") }

// Console is the log of the guest's console.
func (m Machine) Console() string { return filepath.Join(m.Dir, "console.log") }

// Log is the host process's own log.
func (m Machine) Log() string { return filepath.Join(m.Dir, "coracled.log") }

// Lock is the file whose lock says who owns the machine.
func (m Machine) Lock() string { return filepath.Join(m.Dir, "lock") }

// Last is the status (host/api, JSON) that the machine's last host process left, for when none answers.
func (m Machine) Last() string { return filepath.Join(m.Dir, "last.json") }

// FormerContext remembers the docker context that was selected before this machine's.
func (m Machine) FormerContext() string { return filepath.Join(m.Dir, "former-context") }

// DockerHost is the machine's Docker socket as DOCKER_HOST spells it.
func (m Machine) DockerHost() string { return "unix://" + filepath.ToSlash(m.DockerSocket()) }

// RunDir holds what lives only while the machine runs: the driver's sockets, the boot's initramfs.
func (m Machine) RunDir() string { return filepath.Join(m.Dir, "run") }

// ContextName is the docker context's name for a machine.
func ContextName(machine string) string {
	if machine == DefaultMachine {
		return "coracle"
	}
	return "coracle-" + machine
}
