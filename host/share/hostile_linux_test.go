package share

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestHostileRaces: CVE-2026-93834, CVE-2026-77179, CVE-2020-35517, CVE-2026-79994 and test 7 of the faults: guests rename,
// exchange and replace directories by symlinks that lead out while others work beneath them. Nothing outside is read, made,
// changed or taken away, and no host file gains a bit that it must not have.
func TestHostileRaces(t *testing.T) {
	f := serve(t, Config{})
	outside := filepath.Join(filepath.Dir(f.root), "outside")
	must(t, os.MkdirAll(outside+"/sub", 0o755))
	for _, p := range []string{"x", "y", "sub/x", "sub/y"} {
		write(t, filepath.Join(outside, p), "canary of the host")
	}
	before := snapshot(t, outside)
	c := f.client(t)
	root := c.root(t, "s")
	for _, d := range []string{"a", "b"} {
		_, e := c.mkdir(root, d, 0o777)
		_, sub := c.mkdir(e.NodeId, "sub", 0o777)
		for _, dir := range []uint64{e.NodeId, sub.NodeId} {
			c.create(dir, "x", unix.O_RDWR, 0o666)
		}
	}
	c.symlink(root, "../outside", "l") // leads to the canaries from the host's point of view
	c.symlink(root, outside, "m")
	stop := time.Now().Add(2 * time.Second)
	if testing.Short() {
		stop = time.Now().Add(200 * time.Millisecond)
	}
	var guests sync.WaitGroup
	for seed := range 6 {
		guests.Go(func() {
			h := hostile{client: &client{s: f.Server, uid: uint32(seed % 2 * 1000)}, t: t, root: root, r: rand.New(rand.NewPCG(uint64(seed), 7))}
			for time.Now().Before(stop) {
				h.step()
			}
		})
	}
	guests.Add(1)
	go func() { // the host's user moves things too
		defer guests.Done()
		for i := 0; time.Now().Before(stop); i++ {
			unix.Renameat2(unix.AT_FDCWD, f.root+"/a", unix.AT_FDCWD, f.root+"/l", unix.RENAME_EXCHANGE)
		}
	}()
	guests.Wait()
	if after := snapshot(t, outside); after != before {
		t.Errorf("outside was\n%sand is\n%s", before, after)
	}
	must(t, filepath.Walk(f.root, func(p string, info os.FileInfo, err error) error {
		h := hostStat(t, p)
		if h.Mode&unix.S_IFMT != unix.S_IFLNK && h.Mode&0o7022 != 0 || h.Mode&unix.S_IFMT == unix.S_IFCHR {
			t.Errorf("%s is %o on the host", p, h.Mode)
		}
		return err
	}))
}

// snapshot describes all beneath dir: names, content, mode, number of links, times.
func snapshot(t *testing.T, dir string) string {
	var b strings.Builder
	must(t, filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		h := hostStat(t, p)
		content := []byte(nil)
		if info.Mode().IsRegular() {
			content, _ = os.ReadFile(p)
		}
		fmt.Fprintf(&b, "%s %o %d:%d %d %v %q\n", p, h.Mode, h.Uid, h.Gid, h.Nlink, h.Mtim, content)
		return err
	}))
	return b.String()
}

// hostile makes random requests about few names, so that they meet.
type hostile struct {
	*client
	t     *testing.T
	root  uint64
	r     *rand.Rand
	nodes []uint64
	files [][2]uint64
}

func (h *hostile) name() string {
	return []string{"a", "b", "l", "m", "sub", "x", "y", "outside", ".."}[h.r.IntN(9)]
}

// dir walks from the root to some directory that is or was one.
func (h *hostile) dir() uint64 {
	if len(h.nodes) > 0 && h.r.IntN(3) == 0 {
		return h.nodes[h.r.IntN(len(h.nodes))]
	}
	at := h.root
	for range h.r.IntN(3) {
		if st, e := h.lookup(at, h.name()); st == fuse.OK {
			at = e.NodeId
		}
	}
	if h.nodes = append(h.nodes, at); len(h.nodes) > 50 {
		h.nodes = h.nodes[25:]
	}
	return at
}

func (h *hostile) step() {
	if h.r.IntN(3000) == 0 { // unmount and mount again, while others go on
		h.call(opDestroy, 0, nil, "")
		h.call(opInit, 0, raw(&fuse.InitIn{Major: 7, Minor: 38}), "")
	}
	d, name := h.dir(), h.name()
	switch h.r.IntN(16) {
	case 0, 1:
		h.rename(d, name, h.dir(), h.name(), []uint32{0, unix.RENAME_EXCHANGE, unix.RENAME_NOREPLACE}[h.r.IntN(3)])
	case 2:
		h.symlink(d, []string{"../../outside", "/", "../outside/sub", "."}[h.r.IntN(4)], name)
	case 3:
		h.mkdir(d, name, 0o7777)
	case 4:
		h.unlink(d, name)
	case 5:
		h.rmdir(d, name)
	case 6:
		if st, e := h.create(d, name, unix.O_RDWR|unix.O_TRUNC, 0o6777); st == fuse.OK {
			h.write(e.NodeId, e.Fh, "guest was here")
			h.files = append(h.files, [2]uint64{e.NodeId, e.Fh})
		}
	case 7:
		if st, e := h.lookup(d, name); st == fuse.OK {
			if st, o := h.open(e.NodeId, unix.O_RDWR|unix.O_TRUNC*uint32(h.r.IntN(2))); st == fuse.OK {
				h.unlink(d, name)
				h.files = append(h.files, [2]uint64{e.NodeId, o.Fh})
			}
		}
	case 8:
		if st, e := h.tmpfile(d); st == fuse.OK {
			h.link(e.NodeId, h.dir(), name)
			h.files = append(h.files, [2]uint64{e.NodeId, e.Fh})
		}
	case 9:
		if st, e := h.lookup(d, name); st == fuse.OK {
			h.link(e.NodeId, h.dir(), h.name())
			h.chmod(e.NodeId, 0o6777)
			h.setattr(e.NodeId, fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE | fuse.FATTR_MTIME | fuse.FATTR_MTIME_NOW}})
			h.setxattr(e.NodeId, "user.guest", "was here")
		}
	case 10:
		h.mknod(d, name, unix.S_IFSOCK|0o6777, 0)
		h.mknod(d, name, unix.S_IFCHR|0o666, 0x103)
	case 11:
		h.list(d, h.r.IntN(2) == 0, 1024)
	case 12:
		if st, b := h.call(5, d, nil, ""); st == fuse.OK && strings.Contains(string(b), "canary") {
			h.t.Errorf("read %q", b)
		}
	default:
		h.reuse()
	}
}

// reuse works on what is open, whatever its name is now.
func (h *hostile) reuse() {
	if len(h.files) == 0 {
		return
	}
	i := h.r.IntN(len(h.files))
	node, fh := h.files[i][0], h.files[i][1]
	if st, again := h.open(node, unix.O_RDWR); st == fuse.OK {
		h.release(node, again.Fh)
	}
	h.write(node, fh, "guest was here")
	if st, got := h.read(node, fh, 100); st == fuse.OK && strings.Contains(got, "canary") {
		h.t.Errorf("read %q", got)
	}
	if len(h.files) > 30 {
		h.release(node, fh)
		h.files = append(h.files[:i], h.files[i+1:]...)
	}
}

// FuzzServe feeds raw requests to a server: it answers or does not, and stays whole.
func FuzzServe(f *testing.F) {
	head := func(op uint32, node uint64, body string) []byte {
		b := binary.LittleEndian.AppendUint32(nil, uint32(40+len(body)))
		b = binary.LittleEndian.AppendUint32(b, op)
		b = binary.LittleEndian.AppendUint64(b, 1)
		b = binary.LittleEndian.AppendUint64(b, node)
		return append(append(b, make([]byte, 16)...), body...)
	}
	for op := range uint32(55) {
		f.Add(head(op, 1, "s\x00"), uint16(200))
		f.Add(head(op, 1<<16+1, strings.Repeat("\x00", 60)+"name\x00other\x00"), uint16(4096))
		f.Add(head(op, 1<<16+1, "a\x00b\x00"), uint16(16))
	}
	log := quiet()
	root := f.TempDir()
	write(f, root+"/a", "content")
	s, err := New(Config{Log: log, Dir: f.TempDir()})
	must(f, err)
	f.Cleanup(func() { s.Close() })
	must(f, s.SetShares([]Share{{Tag: "s", Path: root}}))
	f.Fuzz(func(t *testing.T, in []byte, room uint16) {
		c := fixture{Server: s}.client(t)
		share := c.root(t, "s")
		if len(in) >= 24 && binary.LittleEndian.Uint64(in[16:]) == 1<<16+1 {
			binary.LittleEndian.PutUint64(in[16:], share)
		}
		out := make([]byte, room)
		half := len(in) / 2
		n := s.Serve([][]byte{in[:half], in[half:]}, [][]byte{out[:room/3], out[room/3:]})
		if n < 0 || n > len(out) || n > 0 && n < 16 {
			t.Fatalf("%d bytes of %d are written", n, len(out))
		}
		if n >= 16 && int(binary.LittleEndian.Uint32(out)) < n {
			t.Fatalf("the answer says %d bytes and has %d", binary.LittleEndian.Uint32(out), n)
		}
		// It still serves.
		if len(in) < 8 || binary.LittleEndian.Uint32(in[4:]) != opDestroy && binary.LittleEndian.Uint32(in[4:]) != opInit {
			c.root(t, "s")
		}
	})
}

// FuzzOwners feeds bytes to the database: it opens, and keeps what is put into it.
func FuzzOwners(f *testing.F) {
	k, rec := ownerKey{ino: 7, birthSec: 8, birthNsec: 9}, owner{set: ownsUID, uid: 5}
	whole := append([]byte(ownersMagic), encodeOwner(k, rec)...)
	f.Add(whole)
	f.Add(whole[:30])
	f.Add([]byte("something else"))
	f.Add(append(whole, whole...))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		must(t, os.WriteFile(dir+"/"+ownersName, data, 0o600))
		for range 2 {
			o, err := openOwners(dir, quiet())
			must(t, err)
			o.put(k, rec)
			if got := o.get(k); got != rec {
				t.Fatalf("got %+v", got)
			}
			must(t, o.close())
		}
	})
}
