//go:build linux

package share

import (
	"bufio"
	"encoding/json"
	"maps"
	"net"
	"os"
	"path"
	"sync"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/share/notify"
	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// phantom is a file server whose "host" is a map that the test changes behind the kernel's back. All that the kernel is told
// it may remember for an hour. Changes are acknowledged and made to nothing, as host/share does for a replay. Its root has one
// directory, t.
type phantom struct {
	fuse.RawFileSystem
	mu      sync.Mutex
	files   map[string]fuse.Attr // beneath t
	content string               // of each
	missing string               // a name of which the kernel's lookup is told that it is not there
	threads map[string][]int     // which threads asked for what
	skew    uint32               // makes an mtime that is not the true one
}

const shareIno = 2

func (p *phantom) attr(ino uint64) (a fuse.Attr, ok bool) {
	if ino == fuse.FUSE_ROOT_ID || ino == shareIno {
		return fuse.Attr{Ino: ino, Mode: unix.S_IFDIR | 0o777, Nlink: 2}, true
	}
	for _, a := range p.files {
		if a.Ino == ino {
			return a, true
		}
	}
	return a, false
}

func (p *phantom) asked(op string, h *fuse.InHeader) func() {
	p.mu.Lock()
	if op != "lookup" {
		p.threads[op] = append(p.threads[op], int(h.Pid))
	}
	return p.mu.Unlock
}

func (p *phantom) entry(name string, out *fuse.EntryOut) fuse.Status {
	a, ok := p.files[name]
	if !ok {
		return fuse.ENOENT
	}
	out.NodeId, out.Attr = a.Ino, a
	out.SetEntryTimeout(time.Hour)
	out.SetAttrTimeout(time.Hour)
	return fuse.OK
}

func (p *phantom) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	defer p.asked("lookup", h)()
	a, ok := p.files[name]
	switch {
	case h.NodeId == fuse.FUSE_ROOT_ID:
		a, _ = p.attr(shareIno)
	case name == p.missing || !ok:
		out.SetEntryTimeout(time.Hour) // with no node: the name is missing
		return fuse.OK
	}
	out.NodeId, out.Attr = a.Ino, a
	out.SetEntryTimeout(time.Hour)
	out.SetAttrTimeout(time.Hour)
	return fuse.OK
}

func (p *phantom) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer p.asked("getattr", &in.InHeader)()
	a, ok := p.attr(in.NodeId)
	if !ok {
		return fuse.Status(unix.ESTALE)
	}
	out.Attr = a
	out.SetTimeout(time.Hour)
	return fuse.OK
}

func (p *phantom) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer p.asked("setattr", &in.InHeader)()
	a, ok := p.attr(in.NodeId)
	if !ok {
		return fuse.Status(unix.ESTALE)
	}
	out.Attr = a
	if in.Valid&fuse.FATTR_SIZE != 0 {
		p.skew++
		out.Attr.Mtimensec = a.Mtimensec + p.skew // so that the true time is news, and the pages are dropped
		return fuse.OK
	}
	out.SetTimeout(time.Hour)
	return fuse.OK
}

func (p *phantom) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	defer p.asked("create", &in.InHeader)()
	return p.entry(name, &out.EntryOut)
}

func (p *phantom) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	defer p.asked("mknod", &in.InHeader)()
	return p.entry(name, out)
}

func (p *phantom) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	defer p.asked("mkdir", &in.InHeader)()
	return p.entry(name, out)
}

func (p *phantom) Symlink(_ <-chan struct{}, h *fuse.InHeader, _, name string, out *fuse.EntryOut) fuse.Status {
	defer p.asked("symlink", h)()
	return p.entry(name, out)
}

func (p *phantom) Unlink(_ <-chan struct{}, h *fuse.InHeader, _ string) fuse.Status {
	defer p.asked("unlink", h)()
	return fuse.OK
}

func (p *phantom) Rmdir(_ <-chan struct{}, h *fuse.InHeader, _ string) fuse.Status {
	defer p.asked("rmdir", h)()
	return fuse.OK
}

func (p *phantom) Rename(_ <-chan struct{}, in *fuse.RenameIn, _, _ string) fuse.Status {
	defer p.asked("rename", &in.InHeader)()
	return fuse.OK
}

func (p *phantom) Read(_ <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	defer p.asked("read", &in.InHeader)()
	return fuse.ReadResultData([]byte(p.content)), fuse.OK
}

// mountPhantom mounts p as the guest mounts the device.
func mountPhantom(t *testing.T, p *phantom) (dir string) {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		t.Skip("needs /dev/fuse and root (modprobe fuse; run the tests as root): ", err)
	} else {
		f.Close()
	}
	dir = t.TempDir()
	server, err := fuse.NewServer(p, dir, &fuse.MountOptions{
		DirectMountStrict: true, Options: []string{"default_permissions"}, Name: "coracle-test", DisableXAttrs: true,
	})
	if err != nil {
		t.Skip("cannot mount a FUSE file system: run the tests as root: ", err)
	}
	var wg sync.WaitGroup
	wg.Go(server.Serve)
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	if err := server.WaitMount(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// stream is the host's end of a replay stream.
type stream struct {
	t      *testing.T
	conn   net.Conn
	in     *bufio.Scanner
	thread int
}

func openStream(t *testing.T, dir string) *stream {
	t.Helper()
	here, there := net.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := replay(t.Context(), there, dir); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { here.Close(); wg.Wait() })
	s := &stream{t: t, conn: here, in: bufio.NewScanner(here)}
	var hello api.Replayer
	s.read(&hello)
	s.thread = hello.Thread
	return s
}

func (s *stream) read(v any) {
	s.t.Helper()
	_ = s.conn.SetDeadline(time.Now().Add(10 * time.Second))
	if !s.in.Scan() {
		s.t.Fatal("the stream ended: ", s.in.Err())
	}
	if err := json.Unmarshal(s.in.Bytes(), v); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stream) do(op api.Replay) (err string) {
	s.t.Helper()
	if err := json.NewEncoder(s.conn).Encode(op); err != nil {
		s.t.Fatal(err)
	}
	var answer api.Replayed
	s.read(&answer)
	return answer.Error
}

// story is one change of the host, its replay, and what a watcher in the guest hears.
type story struct {
	name   string
	change func(p *phantom)
	op     api.Replay
	asks   string // the request that the server gets, of the stream's thread
	want   []notify.Event
}

var stories = []story{
	{"create", func(p *phantom) { p.files["a"] = fuse.Attr{Ino: 10, Mode: unix.S_IFREG | 0o640, Nlink: 1} },
		api.Replay{Op: api.ReplayCreate, Path: []byte("t/a"), Mode: unix.S_IFREG | 0o640}, "create",
		[]notify.Event{{Name: "a", Kind: notify.Created}}},
	{"modify", func(p *phantom) {
		p.content = "true!"
		p.files["a"] = fuse.Attr{Ino: 10, Mode: unix.S_IFREG | 0o640, Nlink: 1, Size: 5, Mtime: 7}
	}, api.Replay{Op: api.ReplayModify, Path: []byte("t/a"), Size: 5}, "setattr",
		[]notify.Event{{Name: "a", Kind: notify.Modified}}},
	{"modify, same size", func(p *phantom) {
		p.content = "again"
		p.files["a"] = fuse.Attr{Ino: 10, Mode: unix.S_IFREG | 0o640, Nlink: 1, Size: 5, Mtime: 7, Mtimensec: 5000}
	}, api.Replay{Op: api.ReplayModify, Path: []byte("t/a"), Size: 5}, "setattr",
		[]notify.Event{{Name: "a", Kind: notify.Modified}}},
	{"attributes", func(p *phantom) {
		p.files["a"] = fuse.Attr{Ino: 10, Mode: unix.S_IFREG | 0o751, Nlink: 1, Size: 5, Mtime: 7, Mtimensec: 5000}
	}, api.Replay{Op: api.ReplayAttrib, Path: []byte("t/a"), Mode: unix.S_IFREG | 0o751}, "setattr",
		[]notify.Event{{Name: "a", Kind: notify.Attributes}}},
	{"rename", func(p *phantom) {
		p.files["b"] = p.files["a"]
		delete(p.files, "a")
	}, api.Replay{Op: api.ReplayRename, Path: []byte("t/a"), To: []byte("t/b")}, "rename",
		[]notify.Event{{Name: "a", Kind: notify.MovedFrom}, {Name: "b", Kind: notify.MovedTo}}},
	{"remove", func(p *phantom) { delete(p.files, "b") }, api.Replay{Op: api.ReplayUnlink, Path: []byte("t/b")}, "unlink",
		[]notify.Event{{Name: "b", Kind: notify.Removed}}},
	{"mkdir", func(p *phantom) { p.files["d"] = fuse.Attr{Ino: 11, Mode: unix.S_IFDIR | 0o755, Nlink: 2} },
		api.Replay{Op: api.ReplayMkdir, Path: []byte("t/d"), Mode: unix.S_IFDIR | 0o755}, "mkdir",
		[]notify.Event{{Name: "d", Kind: notify.Created, IsDir: true}}},
	{"attributes of a directory", func(p *phantom) { p.files["d"] = fuse.Attr{Ino: 11, Mode: unix.S_IFDIR | 0o700, Nlink: 2} },
		api.Replay{Op: api.ReplayAttrib, Path: []byte("t/d"), Mode: unix.S_IFDIR | 0o700}, "setattr",
		[]notify.Event{{Name: "d", Kind: notify.Attributes, IsDir: true}}},
	{"rmdir", func(p *phantom) { delete(p.files, "d") }, api.Replay{Op: api.ReplayRmdir, Path: []byte("t/d")}, "rmdir",
		[]notify.Event{{Name: "d", Kind: notify.Removed, IsDir: true}}},
	{"symlink", func(p *phantom) { p.files["l"] = fuse.Attr{Ino: 12, Mode: unix.S_IFLNK | 0o777, Nlink: 1} },
		api.Replay{Op: api.ReplayLink, Path: []byte("t/l"), Mode: unix.S_IFLNK | 0o777}, "symlink",
		[]notify.Event{{Name: "l", Kind: notify.Created}}},
	{"socket", func(p *phantom) { p.files["s"] = fuse.Attr{Ino: 13, Mode: unix.S_IFSOCK | 0o755, Nlink: 1} },
		api.Replay{Op: api.ReplayLink, Path: []byte("t/s"), Mode: unix.S_IFSOCK | 0o755}, "mknod",
		[]notify.Event{{Name: "s", Kind: notify.Created}}},
	{"pipe", func(p *phantom) { p.files["p"] = fuse.Attr{Ino: 14, Mode: unix.S_IFIFO | 0o644, Nlink: 1} },
		api.Replay{Op: api.ReplayLink, Path: []byte("t/p"), Mode: unix.S_IFIFO | 0o644}, "mknod",
		[]notify.Event{{Name: "p", Kind: notify.Created}}},
	{"attributes of a pipe", func(p *phantom) { p.files["p"] = fuse.Attr{Ino: 14, Mode: unix.S_IFIFO | 0o600, Nlink: 1} },
		api.Replay{Op: api.ReplayAttrib, Path: []byte("t/p"), Mode: unix.S_IFIFO | 0o600}, "setattr",
		[]notify.Event{{Name: "p", Kind: notify.Attributes}}},
}

// Each kind of change, through a real FUSE mount that remembers everything: the true event, the true attributes and content
// at once, and requests that carry the id of the thread that introduced itself.
func TestReplayOnFUSE(t *testing.T) {
	p := &phantom{RawFileSystem: fuse.NewDefaultRawFileSystem(), files: map[string]fuse.Attr{}, threads: map[string][]int{}}
	dir := mountPhantom(t, p)
	s := openStream(t, dir)
	w, err := notify.New()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	fd, err := unix.Open(dir+"/t", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := w.Add(fd); err != nil {
		t.Fatal(err)
	}
	for _, c := range stories {
		t.Run(c.name, func(t *testing.T) {
			remember(t, dir+"/t")
			p.mu.Lock()
			p.missing, p.threads = lastName(c.op), map[string][]int{}
			c.change(p)
			p.mu.Unlock()
			if err := s.do(c.op); err != "" {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, next(t, w, len(c.want))); diff != "" {
				t.Error(diff)
			}
			p.mu.Lock()
			threads := p.threads
			p.mu.Unlock()
			for asked, by := range threads {
				if by[0] != s.thread {
					t.Errorf("%s came from the thread %d: the stream's is %d", asked, by[0], s.thread)
				}
			}
			if len(threads[c.asks]) != 1 {
				t.Errorf("the server was asked for %v: want one %s", threads, c.asks)
			}
			p.agrees(t, dir+"/t")
		})
	}
}

// lastName is the name of which a server must say that it is missing, so that the kernel makes it.
func lastName(op api.Replay) string {
	switch op.Op {
	case api.ReplayCreate, api.ReplayMkdir, api.ReplayLink:
		return path.Base(string(op.Path))
	case api.ReplayRename:
		return path.Base(string(op.To))
	}
	return ""
}

// remember has the kernel know all names of the stories, there or missing, their attributes and their content.
func remember(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"a", "b", "d", "l", "s", "p"} {
		var st unix.Stat_t
		_ = unix.Lstat(dir+"/"+name, &st)
		if st.Mode&unix.S_IFMT == unix.S_IFREG {
			contentOf(t, dir+"/"+name)
		}
	}
}

func contentOf(t *testing.T, path string) string {
	t.Helper()
	// The runtime's poller must not wait on a file of a server in this same process.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	buf := make([]byte, 64)
	n, err := unix.Read(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// agrees compares what the guest sees with what is on the "host".
func (p *phantom) agrees(t *testing.T, dir string) {
	t.Helper()
	p.mu.Lock()
	files, content := maps.Clone(p.files), p.content
	p.mu.Unlock()
	for _, name := range []string{"a", "b", "d", "l", "s", "p"} {
		var st unix.Stat_t
		err := unix.Lstat(dir+"/"+name, &st)
		want, there := files[name]
		if there != (err == nil) {
			t.Errorf("%s: the guest says %v, on the host it is there: %v", name, err, there)
			continue
		}
		if !there {
			continue
		}
		if st.Mode != want.Mode || uint64(st.Size) != want.Size || uint64(st.Mtim.Sec) != want.Mtime {
			t.Errorf("%s: mode %o, size %d, mtime %d: want %+v", name, st.Mode, st.Size, st.Mtim.Sec, want)
		}
		if want.Mode&unix.S_IFMT == unix.S_IFREG && want.Size > 0 {
			if got := contentOf(t, dir+"/"+name); got != content[:want.Size] {
				t.Errorf("%s: content %q: want %q", name, got, content)
			}
		}
	}
}

// next returns the next n events, without what differs from run to run, and fails if one more has come with them.
func next(t *testing.T, w *notify.Watcher, n int) (events []notify.Event) {
	t.Helper()
	for len(events) < n {
		select {
		case batch := <-w.Events():
			events = append(events, batch...)
		case <-time.After(5 * time.Second):
			t.Fatalf("heard only %v", events)
		}
	}
	for i := range events {
		events[i].ID, events[i].Cookie = 0, 0
	}
	return events
}
