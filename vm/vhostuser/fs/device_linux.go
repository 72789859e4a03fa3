package fs

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vhostuser"
)

// MaxRequestQueues is how many request queues a front end may set up.
const MaxRequestQueues = 8

// Serve runs a device that leads to files for one front end, until the front end disconnects (nil) or ctx ends. It closes
// conn, and returns when no request is being answered. The tag and the number of queues are the front end's own. The same
// files can be served again afterwards, to one front end at a time: before anything of a new driver reaches them, and at the
// end, they are Reset.
func Serve(ctx context.Context, conn *net.UnixConn, files vm.FileSystem, log *slog.Logger) error {
	d := &device{files: files, log: log}
	err := vhostuser.Serve(ctx, conn, d, log)
	d.forget()
	if err != nil {
		return fmt.Errorf("serve file-system device: %w", err)
	}
	return nil
}

// device is what all queues of one front end share.
type device struct {
	files vm.FileSystem
	log   *slog.Logger
	gate  sync.RWMutex // held for writing while files is Reset, for reading while it answers
	dirty atomic.Bool  // files has answered since it was last Reset

	mu      sync.Mutex
	running int // queues
}

func (d *device) Features() uint64 { return 0 }
func (d *device) Config() []byte   { return nil }
func (d *device) Queues() int      { return 1 + MaxRequestQueues }

// Run answers the requests of a queue: 0 is for those that must not wait behind others, the rest are alike.
func (d *device) Run(q *vhostuser.Queue) error {
	d.start(q.Fresh())
	defer func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.running--
	}()
	return newLane(d, q).run()
}

// start readies the device for a queue. A new driver knows nothing that the one before was told.
func (d *device) start(fresh bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.running == 0 && fresh {
		d.forget()
	}
	d.running++
}

// forget resets the files, unless they are untouched.
func (d *device) forget() {
	d.gate.Lock()
	defer d.gate.Unlock()
	d.reset()
}

// reset is forget with the gate closed.
func (d *device) reset() {
	if d.dirty.Swap(false) {
		d.files.Reset()
	}
}

// serve has r answered and returns the length of the answer. A mount begins with INIT and ends with DESTROY, after which the
// guest forgets everything without a word.
func (d *device) serve(r *request) int {
	if r.op != opInit && r.op != opDestroy {
		d.gate.RLock()
		defer d.gate.RUnlock()
		if !d.dirty.Load() {
			d.dirty.Store(true)
		}
		return d.files.Serve(r.in, r.out)
	}
	d.gate.Lock()
	defer d.gate.Unlock()
	if r.op == opInit {
		d.reset()
	}
	d.dirty.Store(true)
	n := d.files.Serve(r.in, r.out)
	if r.op == opDestroy {
		d.reset()
	}
	return n
}
