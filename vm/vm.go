// Package vm is the contract between the host process and a hypervisor: what a virtual machine is told (Config), what it
// can do (Capabilities), and the five calls that drive it (Machine). It is plain data and interfaces, builds on every
// system and imports the standard library alone; its implementations (vm/qemu, and later vm/vz and vm/wsl) live one level
// below and leak no type of theirs upward. Its neighbours on the data path are host/machine above and those drivers below.
package vm

import (
	"context"
	"net"
	"os"
)

// Driver makes machines with one hypervisor.
type Driver interface {
	// Name is the driver's short name as settings spell it: "qemu", "vz", "wsl".
	Name() string
	// Probe tries the hypervisor (it runs something, it does not look for a file) and tells what it can do here.
	// The error is of class ErrNotInstalled or ErrNotSupported where the driver cannot be used at all.
	Probe(ctx context.Context) (Capabilities, error)
	// Open checks cfg and makes a machine of it that has not started. It keeps no reference to ctx.
	Open(ctx context.Context, cfg Config) (Machine, error)
}

// Machine is one virtual machine, from Open to the end of Wait. Its methods may be called from several goroutines.
// What else a machine can do is told by Capabilities and had by asserting Suspender, Sharer, MemorySetter, Consoler or
// Notifier.
type Machine interface {
	// Start launches the hypervisor and returns when the virtual CPUs run; the guest is not up yet. It may be called once.
	Start(ctx context.Context) error
	// Stop pulls the plug: the guest is not asked. It returns when the hypervisor has ended; a stopped machine stays
	// stopped and Stop on it does nothing. An orderly end is the guest's own power-off, which Wait reports.
	Stop(ctx context.Context) error
	// Wait blocks until the hypervisor has ended: nil after the guest powered off or Stop was called, else why it died.
	// It may be called any number of times; without Start it returns ErrNotRunning.
	Wait() error
	// Dial opens a stream to a port that the guest listens on. It waits for the guest's transport to come up, bounded by
	// ctx. The connection has CloseWrite (see CloseWriter). A port nobody listens on is ErrRefused.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Listen accepts streams that this guest opens to a port of the host. It may be called before Start; the listener
	// ends with the machine. Accepted connections have CloseWrite.
	Listen(port uint32) (net.Listener, error)
}

// CloseWriter is what every connection of a Machine also is: CloseWrite ends our direction, the peer reads end-of-file,
// and the other direction goes on.
type CloseWriter interface{ CloseWrite() error }

// Suspender is a Machine whose memory can be kept on disk; matched by Capabilities.Suspend.
type Suspender interface {
	// Suspend saves the running machine into dir and ends the hypervisor.
	Suspend(ctx context.Context, dir string) error
	// Resume does what Start does, from the state in dir.
	Resume(ctx context.Context, dir string) error
}

// Share is one directory of the host that the guest may mount.
type Share struct {
	Tag      string // the name the guest mounts it by
	Path     string // absolute path on the host
	ReadOnly bool
}

// Sharer is a Machine whose shares can change while it runs; matched by Capabilities.Share.
type Sharer interface {
	// SetShares makes shares the whole set.
	SetShares(ctx context.Context, shares []Share) error
}

// MemorySetter is a Machine whose memory can be lent and taken back; matched by Capabilities.SetMemory.
type MemorySetter interface {
	// SetMemory asks the guest to use at most bytes; the guest complies as it can.
	SetMemory(ctx context.Context, bytes int64) error
}

// Consoler is a Machine that writes its guest's console to a file; matched by Capabilities.Console.
type Consoler interface {
	// Console is the file's path.
	Console() string
}

// Notifier is a Machine that tells what befalls it while it runs; matched by Capabilities.Notify.
type Notifier interface {
	// Notify has f called with every event from now on, one at a time and in order. f must not block and must not call
	// the machine. It may be called once, before Start.
	Notify(f func(Event))
}

// Event is something that befell a running machine and did not end it.
type Event struct {
	Kind   EventKind
	Detail string // a sentence for a person
}

// EventKind says what an Event is about.
type EventKind string

// The kinds of Event.
const (
	EventDiskFull  EventKind = "disk full"  // the host's disk is full: the guest stands still until there is space again
	EventDiskError EventKind = "disk error" // the host could not read or write a disk; the guest was told
	EventResumed   EventKind = "resumed"    // the guest goes on after it stood still
)

// Capabilities is what a probe found: which optional interfaces the driver's machines have, and how they run.
type Capabilities struct {
	Accelerator string // "kvm", "tcg", "hvf", "whpx": what executes the guest's instructions
	Version     string // of the hypervisor, as it reports it
	Reason      string // why this accelerator and not a faster one; empty where it is the fastest there is
	Suspend     bool   // machines are Suspenders
	Share       bool   // machines are Sharers
	FileSystem  bool   // machines carry Config.FileSystem
	SetMemory   bool   // machines are MemorySetters
	Console     bool   // machines are Consolers
	Notify      bool   // machines are Notifiers
}

// Disk is one raw block device.
type Disk struct {
	Path     string // a raw image; never probed for another format
	Serial   string // what the guest finds it by in /sys/block/*/serial; at most 20 ASCII bytes
	ReadOnly bool
}

// Network is the guest's one network card.
type Network struct {
	MAC string // "52:54:00:…"; empty: the driver's default
	MTU int    // bytes; 0: 1500
	// Frames is the other end of the cable: it is called once for each start of the hypervisor with a stream of ethernet
	// frames, each behind its length as 32 bits, big-endian (QEMU's -netdev stream), and returns when ctx ends or the stream
	// does. nil: the driver brings a network of its own.
	Frames func(ctx context.Context, cable net.Conn) error
}

// FileSystem is what a file-system device leads to: it answers FUSE requests (linux/fuse.h). The guest is hostile, and
// memory that a request or an answer lies in can change at any time.
type FileSystem interface {
	// Serve answers one request: in is the request, out the room for the answer. It returns how many bytes it wrote, 0 for a
	// request that has no answer. It is called from several goroutines and may block.
	Serve(in, out [][]byte) int
	// Reset forgets all that a driver in the guest was told and had open: the device starts anew. No Serve runs meanwhile.
	Reset()
}

// Config describes one machine, whole. It is plain data but for KeepOpen, FileSystem and Network.Frames.
type Config struct {
	Arch    string // the guest's, as GOARCH spells it; empty: the host's
	Name    string // for titles and process lists; [a-z0-9-]
	CPUs    int    // at least 1
	Memory  int64  // bytes, a multiple of 1 MiB
	Kernel  string // path; uncompressed on arm64
	Initrd  string // path
	Cmdline string // the kernel's arguments; the driver may add what its console and accelerator need
	Disks   []Disk
	Network Network
	// FileSystem is served to the guest by a virtio-fs device with the tag FileSystemTag; nil: there is none. A driver that
	// cannot carry it (Capabilities.FileSystem) refuses it with ErrNotSupported.
	FileSystem    FileSystem
	FileSystemTag string
	// RunDir is a directory of this machine's own, 0700, for the driver's sockets. Its path is short enough for them.
	RunDir string
	// Console is the file that the guest's console is appended to.
	Console string
	// KeepOpen are files that the hypervisor's process inherits and holds while it lives: the machine's lock is one, so
	// that the lock cannot be taken while a hypervisor of a crashed owner still writes to the disk.
	KeepOpen []*os.File
}

// State is where a machine stands, as every layer above names it.
type State string

// The states of a machine. A machine that was never started and one that ended are both stopped.
const (
	Stopped   State = "stopped"
	Starting  State = "starting"
	Running   State = "running"
	Stopping  State = "stopping"
	Suspended State = "suspended"
	Failed    State = "failed"
)
