//go:build linux

package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
)

// maxEvents bounds what is kept of the past: the boot's steps take some twenty, the rest is for services that come and go.
const maxEvents = 512

// events keeps what happened since boot for those who watch.
type events struct {
	clock func() time.Duration
	log   *slog.Logger

	mu    sync.Mutex
	past  []api.Event
	first int           // how many were dropped before past
	more  chan struct{} // closed and replaced with each event

	forwards    api.Event // the newest of its kind: those before it count no more
	forwardsAre int       // how many there were
}

func newEvents(clock func() time.Duration, log *slog.Logger) *events {
	return &events{clock: clock, log: log, more: make(chan struct{})}
}

// add notes e, with the present time as its end where it has none.
func (v *events) add(e api.Event) {
	if e.End == 0 {
		e.End = v.clock()
	}
	if e.Kind == api.EventStep {
		v.log.Info("step", "name", e.Name, "start", e.Start, "took", e.End-e.Start)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	defer func() {
		close(v.more)
		v.more = make(chan struct{})
	}()
	if e.Kind == api.EventForwards {
		v.forwards = e
		v.forwardsAre++
		return
	}
	v.past = append(v.past, e)
	if len(v.past) > maxEvents {
		half := len(v.past) / 2
		v.past = append(v.past[:0:0], v.past[half:]...)
		v.first += half
	}
}

// step begins a step of the boot; the function that it returns ends it.
func (v *events) step(name string) func() {
	start := v.clock()
	return func() { v.add(api.Event{Kind: api.EventStep, Name: name, Start: start}) }
}

// watch calls f with all events kept, of EventForwards the newest, and then with each new one, until ctx ends or f fails.
func (v *events) watch(ctx context.Context, f func(api.Event) error) error {
	for next, forwards := 0, 0; ; {
		v.mu.Lock()
		next = max(next, v.first)
		fresh := append([]api.Event(nil), v.past[next-v.first:]...)
		next += len(fresh)
		if v.forwardsAre > forwards {
			forwards = v.forwardsAre
			fresh = append(fresh, v.forwards)
		}
		more := v.more
		v.mu.Unlock()
		for _, e := range fresh {
			if err := f(e); err != nil {
				return err
			}
		}
		if len(fresh) > 0 {
			continue
		}
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
