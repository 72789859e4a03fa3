// Package api is THE wire contract between host and guest: vsock ports, the greeting every stream begins with, what the
// guest is told (Boot, Spec), what it tells (Event), and a client and a handler for the small HTTP API between. Host and
// guest share this package and nothing else; it imports the standard library alone.
//
// The doors. The guest listens on PortAgent (HTTP with JSON bodies), PortDocker (one raw Engine API stream per connection),
// PortShell (one terminal per connection, framed as frame.go says), PortConnect (one connection or flow to a published port
// each, connect.go) and PortReplay (file events, replay.go). The host listens on PortKnock, where the guest connects once per
// boot as soon as PortAgent answers, so that nobody polls, and on PortSSH, where each connection is one to the user's ssh
// agent. Every connection, in both directions, begins with the greeting: 8 bytes "CORACLE1" and the boot's 32-byte secret.
// The guest takes connections from the host's CID alone.
package api

import (
	"encoding/json"
	"time"
)

// Version is the protocol's version. Host and guest must agree on it exactly: they come in one image.
const Version = 2

// HostCID is the host's vsock address (linux/vm_sockets.h, VMADDR_CID_HOST); GuestCID the one we give every guest, which
// no other machine sees, since each has a device of its own.
const (
	HostCID  = 2
	GuestCID = 3
)

// The vsock ports. PortKnock and PortSSH are the host's, the others are the guest's.
const (
	PortAgent   = 1024
	PortDocker  = 1025
	PortShell   = 1026
	PortReplay  = 1027
	PortConnect = 1028
	PortKnock   = 1024
	PortSSH     = 1025
)

// ShutdownTime is how long the guest may take from Client.Shutdown to its power-off: it gives containers the time that they
// ask for, which is minutes for some databases. The guest keeps within it, since at its end the host pulls the plug, which
// costs what is not on the disk by then.
const ShutdownTime = 150 * time.Second

// The serial numbers by which the guest finds its disks.
const (
	SerialRoot = "coracle-root"
	SerialData = "coracle-data"
)

// BootPath is where the guest finds its Boot as JSON: a file of the initramfs, in a small archive that the host appends to
// the image's own. The guest reads and removes it before anything else runs, so that no container ever sees it.
const BootPath = "/coracle/boot.json"

// Boot is what one boot is told before any connection exists.
type Boot struct {
	Version int    `json:"version"`
	Secret  []byte `json:"secret"` // 32 random bytes
	Spec    Spec   `json:"spec"`
}

// Spec is the whole desired guest. Applying it twice does what applying it once does.
type Spec struct {
	Hostname string          `json:"hostname"`
	Network  Network         `json:"network"`
	Daemon   json.RawMessage `json:"daemon,omitempty"` // keys added to dockerd's daemon.json; a JSON object
	Shares   []Share         `json:"shares,omitempty"`
	Proxy    Proxy           `json:"proxy,omitzero"`
	// Certificates are CA certificates in PEM that the host trusts beside the image's own.
	Certificates string `json:"certificates,omitempty"`
	// SSHAgent makes SSHAgentSocket, whose connections go to PortSSH.
	SSHAgent bool `json:"sshAgent,omitempty"`
	// ClientAddress has connections to published ports come from their client's own address (see Connect).
	ClientAddress bool `json:"clientAddress,omitempty"`
}

// ShareTag is the tag of the one file-system device. Its root holds a directory for each share, named by the share's Tag.
const ShareTag = "coracle"

// ShareDir is where the guest mounts that device: the directory of a share is ShareDir/Tag.
const ShareDir = "/run/coracle/host"

// SSHAgentSocket is where containers find the user's ssh agent, as Docker Desktop named it.
const SSHAgentSocket = "/run/host-services/ssh-auth.sock"

// Share is a directory of the host that the guest has at the same place.
type Share struct {
	Path     string `json:"path"` // absolute; where the guest shows it
	Tag      string `json:"tag"`  // [a-z0-9-]; its name in the root of the device
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// Proxy are the proxies by which the engine reaches registries, as HTTP_PROXY and its kin spell them.
type Proxy struct {
	HTTP  string `json:"http,omitempty" yaml:"http,omitempty"`
	HTTPS string `json:"https,omitempty" yaml:"https,omitempty"`
	No    string `json:"no,omitempty" yaml:"no,omitempty"`
}

// Network is the guest's one link to the outside. An empty Address leaves it down.
type Network struct {
	Address string   `json:"address,omitempty"` // CIDR: "10.0.2.15/24"
	Gateway string   `json:"gateway,omitempty"`
	DNS     []string `json:"dns,omitempty"`
	MTU     int      `json:"mtu,omitempty"` // bytes; 0 leaves the link's own
	// Host is the address at which containers reach the host: what "host-gateway" stands for. Empty: docker's bridge.
	Host string `json:"host,omitempty"`
}

// Hello is the version handshake: what the guest answers about itself.
type Hello struct {
	Version int    `json:"version"` // of the protocol
	Image   string `json:"image"`   // the guest image's version
	Kernel  string `json:"kernel"`  // uname -r
	BootID  string `json:"bootID"`  // changes with every boot of the kernel
}

// Kinds of Event.
const (
	EventStep    = "step"    // a step of the boot ended (Name, Start, End)
	EventService = "service" // a service changed its state (Name, State, Detail)
	EventReady   = "ready"   // the Engine API answered: once per boot, or again after Docker was restarted
	EventFailed  = "failed"  // the guest cannot do its work (Detail says why)
	// EventForwards says what is to be open on the host now: Forwards is the whole set. The host answers with
	// Client.Published.
	EventForwards = "forwards"
)

// States of a service in an EventService.
const (
	ServiceStarting = "starting"
	ServiceReady    = "ready"
	ServiceFailed   = "failed" // ended unasked; it is started again after a pause
	ServiceStopped  = "stopped"
)

// Event is one line of Watch. Times are nanoseconds since the guest's kernel started (CLOCK_BOOTTIME).
type Event struct {
	Kind   string        `json:"kind"`
	Name   string        `json:"name,omitempty"`
	State  string        `json:"state,omitempty"`
	Detail string        `json:"detail,omitempty"`
	Start  time.Duration `json:"start,omitempty"`
	End    time.Duration `json:"end,omitempty"` // the time of the event, for a step its end

	Forwards []Forward `json:"forwards,omitempty"`
}

// ShellRequest opens a terminal: the first frame's payload on PortShell, as JSON.
type ShellRequest struct {
	Command []string `json:"command,omitempty"` // empty: a login shell
	TTY     bool     `json:"tty"`
	Term    string   `json:"term,omitempty"`
	Size    Size     `json:"size"`
}

// Size is a terminal's, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}
