//go:build linux

// Package agent is the guest's main: it runs guest/boot's steps side by side as their needs are met, starts the engine, tells
// the host what happens, serves guest/api and the streams for Docker, shells, published ports and file events on vsock to the
// host alone, carries ssh to the user's agent, applies the Spec, and ends the machine in order. All other guest rooms hang on it and on nothing else.
//
// It is PID 1: Main never returns, and what fails leaves the agent answering, so that the host learns why and a shell can
// look.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/boot"
	"github.com/coracle-engine/coracle/guest/clock"
	"github.com/coracle-engine/coracle/guest/engine"
	"github.com/coracle-engine/coracle/guest/service"
)

// agent is the guest as guest/api sees it.
type agent struct {
	log    *slog.Logger
	events *events
	off    chan struct{} // closed when the end is asked for
	rooted chan struct{} // closed when the root is the image's
	failed chan struct{} // closed when the guest cannot do its work
	once   struct{ off, failed sync.Once }
	notes  struct {
		sync.Mutex
		refused []string // parts of the boot's Spec that are not in force
	}

	publisher api.Publisher // hears what became of ports

	mu    sync.Mutex // held while a Spec comes into force
	check func(api.Spec) error
	parts []part

	engine chan struct{}  // closed when group is set
	group  *service.Group // the engine's services
}

// part is one part of a Spec, with its way into force. What is in force already costs nothing.
type part struct {
	name  string
	apply func(ctx context.Context, spec api.Spec) error
}

var _ api.Agent = (*agent)(nil)

// Hello implements api.Agent. In the boot's first moments it waits for the root, which knows the image's version.
func (a *agent) Hello() api.Hello {
	select {
	case <-a.rooted:
	case <-a.failed:
	}
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return api.Hello{Version: api.Version, Image: boot.ImageVersion(), Kernel: boot.Kernel(), BootID: strings.TrimSpace(string(id))}
}

// Apply implements api.Agent. Specs come into force one after another, and their parts in order: what cannot be at all is
// refused before anything is done, and what needs the engine started anew comes last, when nothing else can fail any more.
func (a *agent) Apply(ctx context.Context, spec api.Spec) error {
	select {
	case <-a.engine:
	case <-ctx.Done():
		return fmt.Errorf("apply spec before the guest has started: %w", context.Cause(ctx))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.check(spec); err != nil {
		return err
	}
	for _, p := range a.parts {
		if err := p.apply(ctx, spec); err != nil {
			return fmt.Errorf("apply %s: %w", p.name, err)
		}
		a.refused(p.name, nil)
	}
	return nil
}

// refused tells that a part of the boot's Spec is not in force and that the guest works without it, and, with no error, takes
// that back.
func (a *agent) refused(part string, err error) {
	a.notes.Lock()
	defer a.notes.Unlock()
	i := slices.Index(a.notes.refused, part)
	if err == nil && i >= 0 {
		a.notes.refused = slices.Delete(a.notes.refused, i, i+1)
		a.events.add(api.Event{Kind: api.EventService, Name: part, State: api.ServiceReady})
	}
	if err == nil {
		return
	}
	if i < 0 {
		a.notes.refused = append(a.notes.refused, part)
	}
	a.log.Error("the guest goes without a part of its settings", "part", part, "err", err)
	a.events.add(api.Event{Kind: api.EventService, Name: part, State: api.ServiceFailed, Detail: err.Error()})
}

// Watch implements api.Agent.
func (a *agent) Watch(ctx context.Context, f func(api.Event) error) error {
	return a.events.watch(ctx, f)
}

// SetTime implements api.Agent.
func (a *agent) SetTime(now time.Time) error { return clock.Set(now) }

// Published implements api.Publisher.
func (a *agent) Published(list []api.Publication) { a.publisher.Published(list) }

// Shutdown implements api.Agent.
func (a *agent) Shutdown() { a.once.off.Do(func() { close(a.off) }) }

// fail tells everyone that the guest cannot do its work.
func (a *agent) fail(err error) {
	a.log.Error("the guest cannot do its work", "err", err)
	a.events.add(api.Event{Kind: api.EventFailed, Detail: err.Error()})
	a.once.failed.Do(func() { close(a.failed) })
}

// report turns the services' changes into events and log lines.
func (a *agent) report() service.Report {
	started := map[string]time.Duration{}
	var mu sync.Mutex
	return func(name, state, detail string) {
		now := clock.Up()
		mu.Lock()
		if state == api.ServiceStarting {
			started[name] = now
		}
		began := started[name]
		mu.Unlock()
		level := slog.LevelInfo
		if state == api.ServiceFailed {
			level = slog.LevelError
		}
		a.log.Log(context.Background(), level, "service "+state, "service", name, "detail", detail)
		a.events.add(api.Event{Kind: api.EventService, Name: name, State: state, Detail: detail, End: now})
		if state != api.ServiceReady {
			return
		}
		a.events.add(api.Event{Kind: api.EventStep, Name: name, Start: began, End: now})
		if name == engine.Dockerd {
			a.events.add(api.Event{Kind: api.EventReady, End: now})
		}
	}
}

// engineIs says which group runs the engine. It is called once.
func (a *agent) engineIs(group *service.Group) {
	a.group = group
	close(a.engine)
}

// engineReady blocks until the Engine API answers, and fails when that cannot be expected.
func (a *agent) engineReady(ctx context.Context) error {
	select {
	case <-a.engine:
		return a.group.Wait(ctx, engine.Dockerd)
	case <-a.failed:
		return errors.New("the guest could not start; see the machine's log")
	case <-ctx.Done():
		return fmt.Errorf("the guest is still starting: %w", context.Cause(ctx))
	}
}

// newAgent makes an agent that has no parts yet.
func newAgent(log *slog.Logger) *agent {
	return &agent{
		log: log, events: newEvents(clock.Up, log), off: make(chan struct{}),
		engine: make(chan struct{}), rooted: make(chan struct{}), failed: make(chan struct{}),
	}
}
