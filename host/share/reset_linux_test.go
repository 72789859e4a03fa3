package share

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/host/share/notify"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestResetsMeanwhile: a guest that starts over and ends while its requests are being answered does no harm to what the server
// knows, and leaves nothing behind.
func TestResetsMeanwhile(t *testing.T) {
	w, err := notify.New()
	must(t, err)
	f := serve(t, Config{Watcher: w})
	t.Cleanup(func() { w.Close() })
	makeTree(t, f.root, 20)
	f.client(t)
	stop := time.Now().Add(time.Second)
	var guests sync.WaitGroup
	for i := range 4 {
		guests.Go(func() {
			c := &client{s: f.Server}
			for n := 0; time.Now().Before(stop); n++ {
				_, root := c.lookup(fuse.FUSE_ROOT_ID, "s")
				_, tree := c.lookup(root.NodeId, "tree")
				_, dir := c.lookup(tree.NodeId, "000")
				c.list(dir.NodeId, true, 1024)
				name := fmt.Sprintf("%d-%d", i, n%3)
				if st, e := c.create(dir.NodeId, name, unix.O_RDWR, 0o644); st == fuse.OK {
					c.write(e.NodeId, e.Fh, "x")
					c.release(e.NodeId, e.Fh)
				}
				c.rename(dir.NodeId, name, root.NodeId, name, 0)
				c.unlink(root.NodeId, name)
				c.forget(dir.NodeId, 2)
				c.forget(tree.NodeId, 1)
			}
		})
	}
	resets := 0
	for c := (&client{s: f.Server}); time.Now().Before(stop); resets++ {
		if resets%3 == 0 {
			c.call(opDestroy, 0, nil, "")
		}
		c.call(opInit, 0, raw(&fuse.InitIn{Major: 7, Minor: 38, Flags: ^uint32(0)}), "")
		write(t, f.root+"/tree/000/host", fmt.Sprint(resets))
		must(t, os.Remove(f.root+"/tree/000/host"))
	}
	guests.Wait()
	t.Logf("%d resets", resets)
	f.tree.mu.RLock()
	for _, n := range f.tree.byID {
		held := 0
		for _, child := range n.names {
			if child.held() {
				held++
			}
		}
		if n.children != held || n.lookups > 1<<40 {
			t.Errorf("node %d: %d children are counted, %d are held; %d lookups", n.id, n.children, held, n.lookups)
		}
	}
	f.tree.mu.RUnlock()
	f.Reset()
	if len(f.tree.byID) != 2 || len(f.tree.byKey) != 1 {
		t.Errorf("%d nodes are left", len(f.tree.byID))
	}
	if n := f.handles.count.Load(); n != 0 {
		t.Errorf("%d files are open", n)
	}
}
