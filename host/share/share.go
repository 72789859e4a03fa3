// Package share is the file server behind the virtio-fs device: it answers the guest's FUSE requests (linux/fuse.h, protocol
// 7) with the host directories that are shared. Its root holds one directory for each share, named by the share's tag, which
// guest/share binds to the place where the guest shows it. Its neighbours on the data path are vm/vhostuser/fs, which carries
// requests from the guest's memory, and the host's file system; host/share/notify tells it of changes on the host, and over
// streams of guest/api (replay.go there) it has the guest repeat them.
//
// What it promises:
//
//   - Confinement. The guest is hostile. Every path is resolved anew beneath its share's root, no symlink and no magic link is
//     followed, and what is found must be the file that was meant. No descriptor outlives its request but those of open files.
//   - The host's files stay the user's: whatever owner and mode a container gives a file is kept in a database aside (owners.go)
//     and shown to the guest alone. What a guest makes or changes never gains a set-user-ID bit, another owner, or write
//     permission for others.
//   - Coherence. What the guest may remember for long, it is told of when it changes (told.go, reconcile.go, replay.go).
//
// It is built for Linux. On other systems the package builds and New fails: go-fuse speaks the dialect of the system that it is
// built for there, and an os.Root could resolve paths.
package share

import (
	"log/slog"

	"github.com/coracle-engine/coracle/host/share/notify"
)

// Share is one directory of the host that the guest sees.
type Share struct {
	Tag      string // its name in the device's root: [a-z0-9-], at most 64 bytes
	Path     string // absolute
	ReadOnly bool
	Secrets  bool // show what Secrets lists too
}

// Config is what a Server is made of.
type Config struct {
	Log     *slog.Logger
	Dir     string   // an existing directory, for the database of owners
	Hidden  []string // directories that no guest ever sees, at any depth: CORACLE_HOME
	Watcher Watcher  // nil: nothing is remembered for long. The caller closes it, after the Server.
	Streams int      // how many streams Replay keeps; 0: 2
}

// Watcher is notify.Watcher, which says what its methods do.
type Watcher interface {
	Add(fd int) (notify.ID, error)
	Remove(notify.ID) error
	Events() <-chan []notify.Event
}
