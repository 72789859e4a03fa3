package share

import (
	"fmt"
	"os"
	"testing"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/share/notify"
	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestForgedReplay: only the operation that is expected, by the thread that it is expected of, is acknowledged without being
// made; everything else by that thread is refused, and everything by others is made.
func TestForgedReplay(t *testing.T) {
	f := serve(t, Config{})
	write(t, f.root+"/a", "content")
	write(t, f.root+"/b", "content")
	c := f.client(t)
	root := c.root(t, "s")
	_, a := c.lookup(root, "a")
	thread := &client{s: f.Server, pid: 77}
	st := &stream{}
	f.replays.set(77, st)

	wants(t, "unlink by a replaying thread unasked", thread.unlink(root, "a"), fuse.EIO)
	refused, _ := thread.create(root, "new", unix.O_RDWR, 0o644)
	wants(t, "create unasked", refused, fuse.EIO)
	refused, _ = thread.mkdir(root, "new", 0o755)
	wants(t, "mkdir unasked", refused, fuse.EIO)
	wants(t, "rename unasked", thread.rename(root, "a", root, "c", 0), fuse.EIO)
	wants(t, "link unasked", thread.link(a.NodeId, root, "c"), fuse.EIO)
	wants(t, "setxattr unasked", thread.setxattr(a.NodeId, "user.x", "y"), fuse.EIO)
	refused, _ = thread.tmpfile(root)
	wants(t, "tmpfile unasked", refused, fuse.EIO)
	refused, _ = thread.chmod(a.NodeId, 0o777)
	wants(t, "chmod unasked", refused, fuse.EIO)
	refused, _ = thread.open(a.NodeId, unix.O_RDONLY)
	wants(t, "open unasked", refused, fuse.EIO)
	wants(t, "write unasked", thread.write(a.NodeId, mustOpen(t, c, a.NodeId), "x"), fuse.EIO)

	dir := f.tree.get(root)
	e := &expectation{dir: dir, name: "a", node: f.tree.get(a.NodeId), replay: guestapi.Replay{Op: guestapi.ReplayUnlink}}
	st.expects.Store(e)
	wants(t, "unlink of another name", thread.unlink(root, "b"), fuse.EIO)
	wants(t, "another operation", thread.rename(root, "a", root, "c", 0), fuse.EIO)
	wants(t, "another thread", c.unlink(root, "b"), fuse.OK)
	if _, err := os.Stat(f.root + "/b"); !os.IsNotExist(err) {
		t.Error("what another thread takes away is still there")
	}
	wants(t, "the operation that is expected", thread.unlink(root, "a"), fuse.OK)
	wants(t, "the same again", thread.unlink(root, "a"), fuse.EIO)
	reads(t, f.root+"/a", "content")
	f.replays.set(77, nil)
	wants(t, "the same, when the stream has ended", thread.unlink(root, "a"), fuse.OK)
}

// deaf is a watcher that tells nothing but that it lost events, and then that it heard nothing.
type deaf struct {
	*notify.Watcher
	events chan []notify.Event
	err    error
}

func (d *deaf) Add(fd int) (notify.ID, error) {
	if d.err != nil {
		return 0, d.err
	}
	return d.Watcher.Add(fd)
}

func (d *deaf) Events() <-chan []notify.Event { return d.events }

func deafened(t *testing.T, err error) (fixture, string, *deaf) {
	w, werr := notify.New()
	must(t, werr)
	go func() {
		for range w.Events() {
		}
	}()
	d := &deaf{w, make(chan []notify.Event), err}
	f := serve(t, Config{Watcher: d})
	t.Cleanup(func() { w.Close() })
	device := mountRaw(t, f.fileSystem(), f.options())
	f.replay(t, device)
	return f, bound(t, device), d
}

func sees(host, guest string) error {
	want, err := describeTree(host, false)
	if err != nil {
		return err
	}
	got, err := describeTree(guest, false)
	if err != nil || !cmp.Equal(want, got) {
		return fmt.Errorf("%w %s", err, cmp.Diff(want, got))
	}
	return nil
}

func someChanges(t *testing.T, dir string) {
	must(t, os.Remove(dir+"/d/gone"), os.Rename(dir+"/d/from", dir+"/to"), os.Mkdir(dir+"/new", 0o755), os.Chmod(dir+"/d", 0o711))
	write(t, dir+"/new/file", "x")
	write(t, dir+"/d/changed", "something else")
	write(t, dir+"/d/missing", "here now")
	must(t, os.Remove(dir+"/d/kind"), os.Mkdir(dir+"/d/kind", 0o755))
}

func someFiles(t *testing.T, dir string) {
	must(t, os.Mkdir(dir+"/d", 0o755))
	for _, name := range []string{"gone", "from", "changed", "kind"} {
		write(t, dir+"/d/"+name, name)
	}
}

// TestOverflow: what was not heard of is found by a full comparison.
func TestOverflow(t *testing.T) {
	f, dir, ear := deafened(t, nil)
	someFiles(t, f.root)
	must(t, sees(f.root, dir), sees(f.root, dir), sees(f.root, dir)) // the first walks are not all remembered
	os.Stat(dir + "/d/missing")
	someChanges(t, f.root)
	if err := sees(f.root, dir); err == nil {
		t.Fatal("the guest remembers nothing: this test shows nothing")
	}
	ear.events <- []notify.Event{{Kind: notify.Overflow}}
	eventually(t, "the guest sees all", func() error { return sees(f.root, dir) })
}

// TestNoRoom: directories that cannot be watched are read from the host each time.
func TestNoRoom(t *testing.T) {
	f, dir, _ := deafened(t, notify.ErrFull)
	someFiles(t, f.root)
	must(t, sees(f.root, dir))
	os.Stat(dir + "/d/missing")
	someChanges(t, f.root)
	must(t, sees(f.root, dir))
	for i := range 200 { // faster than the clock of old file systems
		write(t, f.root+"/d/changed", fmt.Sprintf("%03d", i))
		reads(t, dir+"/d/changed", fmt.Sprintf("%03d", i))
		write(t, fmt.Sprintf("%s/d/%d", f.root, i), "")
		entries, err := os.ReadDir(dir + "/d")
		if err != nil || len(entries) != 3+i+1 {
			t.Fatalf("%d entries, want %d, %v", len(entries), 3+i+1, err)
		}
	}
}

// TestStreamsComeAndGo: what changes while nobody replays is told to the next one that does.
func TestStreamsComeAndGo(t *testing.T) {
	w, err := notify.New()
	must(t, err)
	f := serve(t, Config{Watcher: w})
	t.Cleanup(func() { w.Close() })
	device := mountRaw(t, f.fileSystem(), f.options())
	dir := bound(t, device)
	t.Run("with a stream", func(t *testing.T) {
		f.replay(t, device)
		someFiles(t, f.root)
		must(t, sees(f.root, dir))
		os.Stat(dir + "/d/missing")
	})
	if n := f.replays.live.Load(); n != 0 {
		t.Fatalf("%d streams", n)
	}
	someChanges(t, f.root)
	time.Sleep(20 * time.Millisecond)
	f.replay(t, device)
	eventually(t, "the guest sees all", func() error { return sees(f.root, dir) })
}

// TestManyChanges: a guest that makes changes and replays nothing costs no more than a bounded amount of memory.
func TestManyChanges(t *testing.T) {
	s, err := New(Config{Log: quiet(), Dir: t.TempDir()})
	must(t, err)
	defer s.Close()
	dir := &node{id: 1 << 20, kind: sIFDIR, dir: &directory{}, share: &share{}}
	for i := range 3 * most {
		s.changes.add(dir, fmt.Sprint(i), kind(notify.Created), false, 0)
		s.changes.add(dir, fmt.Sprint(i), kind(notify.MovedFrom), false, uint32(i+1))
	}
	if c := &s.changes; c.count > most+1 || len(c.moves) > most || dir.dir.pending.Load() != int32(c.count) {
		t.Errorf("%d changes wait, %d moves, %d pending", c.count, len(c.moves), dir.dir.pending.Load())
	}
}

// BenchmarkEvent is how long it takes from a change on the host to its event in the guest.
func BenchmarkEvent(b *testing.B) {
	f, dir := watched(b)
	w, err := notify.New()
	must(b, err)
	defer w.Close()
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(b, err)
	_, err = w.Add(fd)
	must(b, err, unix.Close(fd))
	i := 0
	for b.Loop() {
		i++
		must(b, unix.Mkdir(fmt.Sprintf("%s/%d", f.root, i), 0o755))
		<-w.Events()
	}
}

// BenchmarkServe is what requests cost without a kernel on the way.
func BenchmarkServe(b *testing.B) {
	f := serve(b, Config{})
	write(b, f.root+"/a", "content")
	must(b, os.MkdirAll(f.root+"/d/e/f/g", 0o755))
	write(b, f.root+"/d/e/f/g/h", "content")
	c := f.client(b)
	root := c.root(b, "s")
	_, a := c.lookup(root, "a")
	at := root
	for _, name := range []string{"d", "e", "f", "g"} {
		_, e := c.lookup(at, name)
		at = e.NodeId
	}
	_, h := c.lookup(at, "h")
	fh := mustOpen(b, c, a.NodeId)
	for name, do := range map[string]func(){
		"getattr": func() { c.getattr(a.NodeId) }, "getattr-deep": func() { c.getattr(h.NodeId) },
		"lookup": func() { c.lookup(root, "a") }, "missing": func() { c.lookup(root, "b") },
		"read": func() { c.read(a.NodeId, fh, 7) }, "write": func() { c.write(a.NodeId, fh, "content") },
		"open": func() { st, o := c.open(a.NodeId, unix.O_RDONLY); _ = st; c.release(a.NodeId, o.Fh) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				do()
			}
		})
	}
}
