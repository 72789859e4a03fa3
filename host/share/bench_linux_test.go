package share

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/host/share/notify"
	loopback "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// counted counts the requests of a walk that reach the server.
type counted struct {
	fuse.RawFileSystem
	n atomic.Int64
}

func (c *counted) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.Lookup(cancel, in, name, out)
}

func (c *counted) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.GetAttr(cancel, in, out)
}

func (c *counted) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.OpenDir(cancel, in, out)
}

func (c *counted) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.ReadDir(cancel, in, out)
}

func (c *counted) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	c.n.Add(1)
	return c.RawFileSystem.ReadDirPlus(cancel, in, out)
}

// tree makes files in directories of a hundred.
func makeTree(t testing.TB, dir string, files int) {
	t.Helper()
	for i := range files {
		d := fmt.Sprintf("%s/tree/%03d", dir, i/100)
		if i%100 == 0 {
			must(t, os.MkdirAll(d, 0o755))
		}
		must(t, os.WriteFile(fmt.Sprintf("%s/%02d", d, i%100), nil, 0o644))
	}
}

// walk stats every file, and returns how many there are.
func walk(t testing.TB, dir string) int {
	t.Helper()
	n, err := count(dir)
	must(t, err)
	return n
}

func count(dir string) (n int, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			_, err = d.Info()
		}
		n++
		return err
	})
	return n, err
}

// TestWarmWalk: what the guest has seen once it does not ask for again, and it sees at once what changes.
func TestWarmWalk(t *testing.T) {
	w, err := notify.New()
	must(t, err)
	f := serve(t, Config{Watcher: w})
	t.Cleanup(func() { w.Close() })
	makeTree(t, f.root, 2000)
	requests := &counted{RawFileSystem: f.fileSystem()}
	device := mountRaw(t, requests, f.options())
	f.replay(t, device)
	dir := bound(t, device) + "/tree"
	all := walk(t, dir)
	cold := requests.n.Load()
	walk(t, dir) // attributes of directories are remembered from when they are watched
	second := requests.n.Load()
	if got := walk(t, dir); got != all {
		t.Fatalf("walked %d files, then %d", all, got)
	}
	if warm := requests.n.Load() - second; warm > 0 {
		t.Errorf("a warm walk took %d requests (the first %d, the second %d)", warm, cold, second-cold)
	}
	must(t, os.WriteFile(f.root+"/tree/000/new", []byte("x"), 0o644), os.Remove(f.root+"/tree/001/00"),
		os.Rename(f.root+"/tree/002", f.root+"/tree/moved"))
	eventually(t, "the walk sees what changed", func() error {
		_, made := os.Stat(dir + "/000/new")
		_, gone := os.Stat(dir + "/001/00")
		_, moved := os.Stat(dir + "/moved/07")
		_, left := os.Stat(dir + "/002")
		n, err := count(dir)
		if made != nil || gone == nil || moved != nil || left == nil || n != all {
			return fmt.Errorf("%d files of %d, %v %v %v %v %v", n, all, err, made, gone, moved, left)
		}
		return nil
	})
}

// contenders are what is compared: this server and go-fuse's own, each on an empty directory through this kernel.
func contenders(b *testing.B, run func(b *testing.B, host, dir string)) {
	b.Run("coracle", func(b *testing.B) {
		f, dir := watched(b)
		run(b, f.root, dir)
	})
	b.Run("loopback", func(b *testing.B) {
		root := b.TempDir()
		node, err := loopback.NewLoopbackRoot(root)
		must(b, err)
		second := time.Second
		raw := loopback.NewNodeFS(node, &loopback.Options{EntryTimeout: &second, AttrTimeout: &second, NegativeTimeout: &second})
		run(b, root, mountRaw(b, raw, &fuse.MountOptions{MaxWrite: maxWrite, DisabledCapabilities: fuse.CAP_PASSTHROUGH}))
	})
	b.Run("native", func(b *testing.B) {
		dir := b.TempDir()
		run(b, dir, dir)
	})
}

func BenchmarkSmallFiles(b *testing.B) {
	const files = 10_000
	content := bytes.Repeat([]byte("x"), 4096)
	contenders(b, func(b *testing.B, _, dir string) {
		for b.Loop() {
			each := func(do func(name string) error) time.Duration {
				start := time.Now()
				for i := range files {
					must(b, do(fmt.Sprintf("%s/%d", dir, i)))
				}
				return time.Since(start)
			}
			report := func(what string, d time.Duration) { b.ReportMetric(float64(d.Microseconds())/files, what+"-µs") }
			report("create", each(func(name string) error { return os.WriteFile(name, content, 0o644) }))
			report("stat", each(func(name string) error { _, err := os.Stat(name); return err }))
			report("read", each(func(name string) error { _, err := os.ReadFile(name); return err }))
			report("unlink", each(os.Remove))
		}
	})
}

func BenchmarkWalk(b *testing.B) {
	contenders(b, func(b *testing.B, host, dir string) {
		makeTree(b, host, 50_000)
		time.Sleep(time.Second) // the watcher has heard of it
		for b.Loop() {
			must(b, os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0))
			for _, what := range []string{"cold", "second", "warm"} {
				start := time.Now()
				walk(b, dir+"/tree")
				b.ReportMetric(float64(time.Since(start).Milliseconds()), what+"-ms")
			}
		}
	})
}

func BenchmarkSequential(b *testing.B) {
	const size = 256 << 20
	contenders(b, func(b *testing.B, _, dir string) {
		buf := make([]byte, 1<<20)
		for b.Loop() {
			f, err := os.Create(dir + "/big")
			must(b, err)
			start := time.Now()
			for range size / len(buf) {
				_, err := f.Write(buf)
				must(b, err)
			}
			must(b, f.Close())
			b.ReportMetric(size/1e6/time.Since(start).Seconds(), "write-MB/s")
			for _, what := range []string{"read", "reread"} {
				f, err = os.Open(dir + "/big")
				must(b, err)
				if what == "read" {
					must(b, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
				}
				start = time.Now()
				_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buf)
				must(b, err, f.Close())
				b.ReportMetric(size/1e6/time.Since(start).Seconds(), what+"-MB/s")
			}
			must(b, os.Remove(dir+"/big"))
		}
	})
}
