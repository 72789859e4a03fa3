// Package notify tells of changes that others make in directories of the host: what inotify knows, for one directory at a
// time and never for a tree. Its one neighbour, host/share, decides which directories are watched (those that the guest
// knows), and looks at the disk itself for what is true now: an event says where to look, and is never believed.
//
// What inotify cannot tell: writes through a memory map, changes of a file made through a hard link in another directory, and
// changes that another machine makes on a network file system.
package notify

import "errors"

// ErrFull is the error of an Add for which the system has no room (on Linux fs.inotify.max_user_watches, which the user's other
// programs draw on too). The directory is then not watched, and nothing may be remembered of it for long.
var ErrFull = errors.New("no room for another watched directory")

// ErrClosed is the error of calls on a closed Watcher.
var ErrClosed = errors.New("watcher is closed")

// ID names a watched directory of one Watcher. It is positive, and not used again.
type ID int32

// Kind is what happened.
type Kind uint8

// The kinds. All but Gone and Overflow are about Event.Name in the directory; an Attributes event without a name is about the
// directory itself.
const (
	Created    Kind = iota + 1 // a file, a directory, a link or any other thing
	Removed                    // the name is gone
	Modified                   // content or size
	Attributes                 // mode, owner, times, extended attributes, number of links
	MovedFrom                  // the name is gone; the MovedTo of the same cookie, where there is one, says where to
	MovedTo                    // the name is there, maybe in the place of another
	Gone                       // the directory is gone, or its file system: it is watched no more, the ID is void
	Overflow                   // events were lost, in any directory: nothing that was heard before is the whole truth
)

func (k Kind) String() string {
	names := [...]string{"none", "created", "removed", "modified", "attributes", "moved from", "moved to", "gone", "overflow"}
	if int(k) < len(names) {
		return names[k]
	}
	return "unknown"
}

// Event is one change.
type Event struct {
	ID     ID     // 0 for Overflow
	Name   string // any bytes but a slash and zero
	Kind   Kind
	Cookie uint32 // joins MovedFrom and MovedTo; 0 for other kinds
	IsDir  bool   // Name is a directory
}
