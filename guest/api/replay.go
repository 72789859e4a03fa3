package api

// On a stream of PortReplay the host has the guest repeat changes that were made on the host ("phantom operations"), so that
// the guest's kernel raises the true inotify event and drops what it has cached. The guest's first line, as JSON, is a
// Replayer; then each line of the host's is a Replay and is answered by one line, a Replayed, in order. All of a stream's
// operations are made by one thread, by whose id the host's file server knows them: it acknowledges them and touches nothing.
// The host may open several streams; each has a thread of its own. The thread does nothing else while the stream is open, and
// lives on when it has ended, so that no container's thread ever has its id.

// Replayer introduces a stream.
type Replayer struct {
	Thread int `json:"thread"` // the thread's id in the guest's first pid namespace: the pid of its FUSE requests
}

// The operations of a Replay.
const (
	ReplayCreate = "create" // open with O_CREAT|O_EXCL, or O_CREAT; close
	ReplayMkdir  = "mkdir"
	ReplayUnlink = "unlink"
	ReplayRmdir  = "rmdir"
	ReplayModify = "modify" // truncate to Size, then stat past the cache
	ReplayAttrib = "attrib" // chmod to Mode, then stat past the cache
	ReplayRename = "rename" // Path to To
	ReplayLink   = "link"   // symlink and other special files: mknod of the kind in Mode; the server answers with the true entry
)

// Replay is one operation. Paths are relative to the root of the file-system device (their first element is a share's tag);
// names can be any bytes, so they are no strings. No element is a symlink: the guest refuses to follow one.
type Replay struct {
	Op   string `json:"op"`
	Path []byte `json:"path"`
	To   []byte `json:"to,omitempty"`
	Size int64  `json:"size,omitempty"` // bytes
	Mode uint32 `json:"mode,omitempty"` // st_mode bits
}

// Replayed is the answer. An Error is for the log: the host finds out the true state by itself.
type Replayed struct {
	Error string `json:"error,omitempty"`
}
