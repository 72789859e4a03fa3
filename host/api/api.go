// Package api is the door to one machine's host process: the types and the client of the HTTP API on the machine's
// api.sock, and Launch, which starts that process. The command line and the desktop app know a machine through this package
// alone. Its neighbours are host/server, which serves it, and guest/api, whose shell frames pass through it unchanged.
package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// State is where a machine stands; its values are vm.State's.
type State string

// The states of a machine.
const (
	Stopped   State = "stopped"
	Starting  State = "starting"
	Running   State = "running"
	Stopping  State = "stopping"
	Suspended State = "suspended"
	Failed    State = "failed"
)

// Status is everything there is to know about a machine at a moment.
type Status struct {
	Name         string    `json:"name"`
	State        State     `json:"state"`
	PID          int       `json:"pid,omitempty"` // of the host process
	Driver       string    `json:"driver,omitempty"`
	Accelerator  string    `json:"accelerator,omitempty"`
	Note         string    `json:"note,omitempty"` // why not a faster accelerator, or another thing worth saying
	Settings     Settings  `json:"settings"`
	DiskUsed     int64     `json:"diskUsed,omitempty"` // bytes that the data disk really takes on the host
	DockerSocket string    `json:"dockerSocket,omitempty"`
	Context      string    `json:"context,omitempty"` // the docker context that leads here, if one was made
	Image        Image     `json:"image"`
	Started      time.Time `json:"started,omitzero"` // when the host process was launched
	Ready        time.Time `json:"ready,omitzero"`   // when the Engine API first answered
	Services     []Service `json:"services,omitempty"`
	// Shared and Published are what the machine has of this host now, whatever its settings say.
	Shared    []Shared    `json:"shared,omitempty"`
	Published []Published `json:"published,omitempty"`
	Error     *Error      `json:"error,omitempty"` // why the state is failed
}

// Shared is a share as it is now.
type Shared struct {
	Share
	Error string `json:"error,omitempty"` // why containers do not see it, such as that there is no such directory
}

// Published is a port of the host that leads to one in the machine, or should.
type Published struct {
	Protocol string `json:"protocol"` // "tcp" or "udp"
	Address  string `json:"address"`  // of the host
	Port     uint16 `json:"port"`
	To       string `json:"to,omitempty"`    // address and port in the machine
	Error    string `json:"error,omitempty"` // why it is not open
}

// Settings are what a user chooses for a machine.
type Settings struct {
	CPUs   int   `json:"cpus" yaml:"cpus"`
	Memory int64 `json:"memory" yaml:"memory"` // bytes
	Disk   int64 `json:"disk" yaml:"disk"`     // bytes; it can grow, not shrink
	// Arch is the guest's architecture as GOARCH spells it; empty: the host's. Another one is emulated, slowly.
	Arch string `json:"arch,omitempty" yaml:"arch,omitempty"`

	// A running machine follows changes of what comes now, where it can; of what precedes, from its next start.
	Shares  []Share         `json:"shares"`
	Ports   Ports           `json:"ports"`
	Network Network         `json:"network"`
	SSH     bool            `json:"ssh"`              // the user's ssh agent is at /run/host-services/ssh-auth.sock
	Engine  json.RawMessage `json:"engine,omitempty"` // keys of dockerd's daemon.json; a JSON object
}

// Share is a directory of the host that the machine has at the same place.
type Share struct {
	Path     string `json:"path" yaml:"path"` // absolute, clean
	ReadOnly bool   `json:"readOnly,omitempty" yaml:"read-only,omitempty"`
	// Secrets shares the directories that hold keys too (.ssh, .aws, .gnupg, .docker, .kube…), which are left out else.
	Secrets bool `json:"secrets,omitempty" yaml:"secrets,omitempty"`
}

// Ports says how published ports are opened on the host.
type Ports struct {
	Address       string `json:"address"`       // where -p opens a port when it names no address
	ClientAddress bool   `json:"clientAddress"` // a container sees its client's own address
}

// Network says how containers reach the outside.
type Network struct {
	Loopback     bool     `json:"loopback"`               // host.docker.internal reaches what listens on the host's 127.0.0.1
	HTTPProxy    string   `json:"httpProxy,omitempty"`    // empty: as the host's environment says
	HTTPSProxy   string   `json:"httpsProxy,omitempty"`   // the same
	NoProxy      string   `json:"noProxy,omitempty"`      // the same
	Certificates []string `json:"certificates,omitempty"` // files with CA certificates in PEM, beside those that the host trusts
}

// Image is the guest image that a machine boots.
type Image struct {
	Version string `json:"version,omitempty"`
	Digest  string `json:"digest,omitempty"`
	Kernel  string `json:"kernel,omitempty"`
}

// Service is one service in the guest.
type Service struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Detail   string `json:"detail,omitempty"`
	Restarts int    `json:"restarts,omitempty"`
}

// Kinds of Event.
const (
	EventState    = "state"    // the machine's state changed (State)
	EventProgress = "progress" // what is being waited for now (Text)
	EventStep     = "step"     // a step ended (Step)
	EventService  = "service"  // a service in the guest changed (Service)
	EventError    = "error"    // the machine failed (Error)
)

// Event is one line of Watch.
type Event struct {
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"`
	State   State     `json:"state,omitempty"`
	Text    string    `json:"text,omitempty"`
	Step    *Step     `json:"step,omitempty"`
	Service *Service  `json:"service,omitempty"`
	Error   *Error    `json:"error,omitempty"`
}

// Step is one step of a start, for its timeline.
type Step struct {
	Name  string        `json:"name"`
	Where string        `json:"where"` // "host" or "guest"
	Start time.Duration `json:"start"` // nanoseconds since the host process was launched
	End   time.Duration `json:"end"`
}

// Code is the class of an error, the same on both sides of the wire.
type Code string

// The codes. Each one is known to host/diagnose, which has its cause and next step.
const (
	CodeInternal     Code = "internal"
	CodeNotFound     Code = "not-found"
	CodeName         Code = "bad-name"
	CodePathTooLong  Code = "path-too-long"
	CodeConfig       Code = "bad-setting"
	CodeNotInstalled Code = "hypervisor-missing"
	CodeNotSupported Code = "not-supported"
	CodeNoImage      Code = "image-missing"
	CodeAssetCorrupt Code = "image-damaged"
	CodeNoMemory     Code = "no-memory"
	CodeDiskFull     Code = "disk-full"
	CodeDataDisk     Code = "data-disk"
	CodeRunning      Code = "already-running"
	CodeNotRunning   Code = "not-running"
	CodeGuestTimeout Code = "guest-timeout"
	CodeGuestFailed  Code = "guest-failed"
	CodeCrashed      Code = "vm-crashed"
	CodePortInUse    Code = "port-in-use"
	CodePermission   Code = "permission"
	CodeShare        Code = "share-missing"
	CodeEngine       Code = "engine-refused"
	CodeRestart      Code = "needs-restart"
)

// Error is a failure as a user meets it: a class, what happened, and the next thing to do.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// Error is the message; the hint is the command line's to print.
func (e *Error) Error() string { return e.Message }

// Errorf makes an error of a class.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// CodeOf is the class of err, CodeInternal where it has none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}
