package machine

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/host/api"
)

// maxEvents bounds what is remembered for those who watch later. Beyond it the oldest event goes that is no change of
// state; a guest that talks without end costs no memory.
const maxEvents = 1000

type numbered struct {
	n     int
	event api.Event
}

// events remembers what happened and tells it to any number of watchers, each at its own pace.
type events struct {
	mu      sync.Mutex
	next    int
	list    []numbered
	changed chan struct{} // closed and made anew at each change; nil while nobody waits
	closed  bool
}

func (e *events) publish(ev api.Event) {
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.list) >= maxEvents {
		i := slices.IndexFunc(e.list, func(n numbered) bool { return n.event.Kind != api.EventState && n.event.Kind != api.EventError })
		e.list = slices.Delete(e.list, max(i, 0), max(i, 0)+1)
	}
	e.list = append(e.list, numbered{e.next, ev})
	e.next++
	e.wake()
}

func (e *events) wake() {
	if e.changed != nil {
		close(e.changed)
		e.changed = nil
	}
}

// close ends every watch after its last event.
func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	e.wake()
}

func (e *events) watch(ctx context.Context, f func(api.Event) error) error {
	for seen := 0; ; {
		e.mu.Lock()
		i, _ := slices.BinarySearchFunc(e.list, seen, func(n numbered, seen int) int { return n.n - seen })
		fresh := slices.Clone(e.list[i:])
		closed := e.closed
		if e.changed == nil && !closed {
			e.changed = make(chan struct{})
		}
		changed := e.changed
		e.mu.Unlock()
		for _, n := range fresh {
			if err := f(n.event); err != nil {
				return err
			}
			seen = n.n + 1
		}
		switch {
		case len(fresh) > 0:
			continue
		case closed:
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}
