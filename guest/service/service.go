// Package service keeps the guest's long-running services alive: it starts each when what it needs is ready, starts it again
// with a growing pause when it fails, and stops all in the order that nobody loses what it uses (Group). It also owns the
// guest's child processes: every one is started and reaped through one Reaper, since PID 1 inherits all orphans, and their
// output goes to the Log, which never blocks its writers. guest/engine says which services there are, guest/agent runs them.
package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
)

// Service is one thing that runs for as long as the guest does.
type Service interface {
	// Name is what events and logs call it.
	Name() string
	// Run blocks until the service has ended, of itself or because ctx did, and leaves nothing of it behind. It calls
	// ready when others may use it. It is called again after it returned.
	Run(ctx context.Context, ready func()) error
}

// Unit is a Service with its place among the others.
type Unit struct {
	Service
	Needs []string // services that must be ready before this one starts
	Uses  []string // services that must run on until this one has stopped; those in Needs are meant too
}

// Pause says how long a failed service rests: Min, doubled with each failure up to Max, Min again after it ran for Stable.
type Pause struct{ Min, Max, Stable time.Duration }

// DefaultPause is for services that take seconds to start.
var DefaultPause = Pause{Min: 200 * time.Millisecond, Max: 30 * time.Second, Stable: time.Minute}

// Report hears of each change: one of api's Service states, and why. Calls for one service come one after another.
type Report func(name, state, detail string)

// ErrDown is the class of Wait's errors about a service that cannot be expected soon.
var ErrDown = errors.New("service is down")

// Group is a set of services under supervision. Its methods may be called from several goroutines, before Run too.
type Group struct {
	units  []*unit
	report Report
	pause  Pause
}

type unit struct {
	Unit
	users []*unit       // those that need or use it
	needs []*unit       // resolved
	done  chan struct{} // closed when it has stopped for good

	mu       sync.Mutex
	state    string
	detail   string
	failures int                // in a row
	changed  chan struct{}      // closed and replaced with each change of state
	again    context.CancelFunc // ends the present run or pause; nil outside both
}

// NewGroup checks that all names resolve and that each service stands behind those it needs and uses.
func NewGroup(report Report, pause Pause, units ...Unit) (*Group, error) {
	g := &Group{report: report, pause: pause}
	for _, u := range units {
		n := &unit{Unit: u, done: make(chan struct{}), changed: make(chan struct{}), state: api.ServiceStopped}
		for _, name := range slices.Concat(u.Needs, u.Uses) {
			other := g.find(name)
			if other == nil {
				return nil, fmt.Errorf("service %s wants %s: no such service before it", u.Name(), name)
			}
			other.users = append(other.users, n)
			if slices.Contains(u.Needs, name) {
				n.needs = append(n.needs, other)
			}
		}
		if g.find(u.Name()) != nil {
			return nil, fmt.Errorf("service %s: there are two of that name", u.Name())
		}
		g.units = append(g.units, n)
	}
	return g, nil
}

func (g *Group) find(name string) *unit {
	if i := slices.IndexFunc(g.units, func(u *unit) bool { return u.Name() == name }); i >= 0 {
		return g.units[i]
	}
	return nil
}

// Run supervises until ctx ends, then stops every service after those that use it, and returns when all have stopped. It may
// be called once.
func (g *Group) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, u := range g.units {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		wg.Go(func() {
			<-ctx.Done()
			for _, user := range u.users {
				<-user.done
			}
			cancel()
		})
		wg.Go(func() {
			defer close(u.done)
			g.supervise(own, u)
		})
	}
	wg.Wait()
}

func (g *Group) supervise(ctx context.Context, u *unit) {
	defer g.set(u, api.ServiceStopped, "", nil)
	delay := g.pause.Min
	for ctx.Err() == nil {
		for _, need := range u.needs {
			if need.await(ctx, func(string, int) bool { return false }) != nil {
				return
			}
		}
		began := time.Now()
		asked, err := g.once(ctx, u)
		if asked {
			delay = g.pause.Min
			continue
		}
		if time.Since(began) >= g.pause.Stable {
			delay = g.pause.Min
		}
		rest, end := context.WithTimeout(ctx, delay)
		g.set(u, api.ServiceFailed, fmt.Sprintf("%v; next start in %v", err, delay), end)
		<-rest.Done()
		end()
		delay = min(2*delay, g.pause.Max)
	}
}

// once runs u once. asked says that it ended because it was told to, err why it ended otherwise.
func (g *Group) once(ctx context.Context, u *unit) (asked bool, err error) {
	run, end := context.WithCancel(ctx)
	defer end()
	g.set(u, api.ServiceStarting, "", end)
	err = u.Run(run, func() {
		if run.Err() == nil { // else it comes too late
			g.set(u, api.ServiceReady, "", end)
		}
	})
	if err == nil {
		err = errors.New("ended unasked")
	}
	return run.Err() != nil, err
}

// set notes a state and reports it; again is what ends it.
func (g *Group) set(u *unit, state, detail string, again context.CancelFunc) {
	u.mu.Lock()
	if state == api.ServiceReady && u.state != api.ServiceStarting {
		u.mu.Unlock()
		return
	}
	switch state {
	case api.ServiceReady:
		u.failures = 0
	case api.ServiceFailed:
		u.failures++
	}
	u.state, u.detail, u.again = state, detail, again
	close(u.changed)
	u.changed = make(chan struct{})
	u.mu.Unlock()
	g.report(u.Name(), state, detail)
}

// await blocks until u is ready, ctx ends or giveUp says so of its state and its failures in a row.
func (u *unit) await(ctx context.Context, giveUp func(state string, failures int) bool) error {
	for {
		u.mu.Lock()
		state, detail, failures, changed := u.state, u.detail, u.failures, u.changed
		u.mu.Unlock()
		switch {
		case state == api.ServiceReady:
			return nil
		case giveUp(state, failures):
			return fmt.Errorf("%s: %w: %s", u.Name(), ErrDown, detail)
		}
		select {
		case <-changed:
		case <-u.done:
			return fmt.Errorf("%s: %w: it was stopped", u.Name(), ErrDown)
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", u.Name(), context.Cause(ctx))
		}
	}
}

// Wait blocks until the service called name is ready. It gives up, with ErrDown, when that has failed twice in a row or was
// stopped for good, and with ctx's error when ctx ends first.
func (g *Group) Wait(ctx context.Context, name string) error {
	u := g.find(name)
	if u == nil {
		return fmt.Errorf("wait for %s: no such service", name)
	}
	return u.await(ctx, func(state string, failures int) bool { return failures >= 2 })
}

// Restart ends the service called name, or its pause, and returns when it is ready again.
func (g *Group) Restart(ctx context.Context, name string) error {
	u := g.find(name)
	if u == nil {
		return fmt.Errorf("restart %s: no such service", name)
	}
	u.mu.Lock()
	again, changed := u.again, u.changed
	u.failures = 0
	u.mu.Unlock()
	if again != nil {
		again()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return g.Wait(ctx, name)
}
