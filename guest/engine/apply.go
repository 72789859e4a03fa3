//go:build linux

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
)

// applyTime bounds a change that has begun: it goes on when whoever asked for it no longer waits.
const applyTime = 4 * time.Minute

// daemon is dockerd as Apply drives it.
type daemon interface {
	// validate says what is wrong with a daemon.json, in dockerd's own words.
	validate(ctx context.Context, s settings) error
	// reload has the running dockerd take what the file holds, and fails in dockerd's words where it does not.
	reload(ctx context.Context) error
	// restart ends dockerd and returns when it answers again.
	restart(ctx context.Context) error
	info(ctx context.Context) (info, error)
}

// Check says whether spec can be asked of the engine at all. It changes nothing.
func (e *Engine) Check(spec api.Spec) error {
	spec = e.left.without(spec)
	_, err := render(spec)
	if err == nil {
		_, err = certificates(spec.Certificates)
	}
	return err
}

// Apply brings spec into force and keeps containers running. Where that cannot be done nothing changes: an error of class
// api.ErrRestart says that a restart of the machine would do it, any other carries dockerd's reason. Clients' connections
// and builds end where dockerd must be started anew. It waits for an engine that
// is starting.
func (e *Engine) Apply(ctx context.Context, spec api.Spec) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := e.Check(spec); err != nil {
		return err
	}
	if err := e.apply(ctx, e.left.without(spec)); err != nil {
		return err
	}
	for _, part := range e.left.mended(spec) {
		e.c.Refused(part, nil)
	}
	return nil
}

func (e *Engine) apply(ctx context.Context, spec api.Spec) error {
	want, err := render(spec)
	if err != nil {
		return err
	}
	have := e.file.content()
	changed, trusts := want.differ(have), spec.Certificates != e.trust.extra
	if len(changed) == 0 && !trusts {
		return nil
	}
	if e.c.Ready != nil {
		if err := e.c.Ready(ctx); err != nil {
			return err
		}
	}
	if err := e.daemon.validate(ctx, want); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), applyTime)
	defer cancel()
	state, err := e.daemon.info(ctx)
	if err != nil {
		return err
	}
	if state.swarm() && want.live() {
		return errors.New("docker cannot keep containers alive (live-restore) and be part of a swarm")
	}
	soft := !slices.ContainsFunc(changed, func(key string) bool { _, ok := reloadable[key]; return !ok })
	if soft && !trusts {
		return e.reload(ctx, have, want)
	}
	return e.replace(ctx, have, want, spec.Certificates, state)
}

// reload makes a running dockerd go from have to want.
func (e *Engine) reload(ctx context.Context, have, want settings) error {
	if err := e.file.set(want, nil); err != nil {
		return err
	}
	err := e.daemon.reload(ctx)
	if err != nil {
		err = errors.Join(err, e.file.set(have, nil)) // which is what dockerd still goes by
	}
	return err
}

// replace starts dockerd anew with want. Containers outlive it by live-restore, which is on for as long as that takes.
func (e *Engine) replace(ctx context.Context, have, want settings, certificates string, state info) error {
	if err := kept(want.differ(have), state); err != nil {
		return err
	}
	before, after := have, want
	if !state.swarm() {
		before, after = have.with(liveRestore, true), want.with(liveRestore, true)
		if !have.live() {
			if err := e.reload(ctx, have, before); err != nil {
				return fmt.Errorf("%w: docker would not keep containers alive meanwhile: %w", api.ErrRestart, err)
			}
		}
	}
	trusted := e.trust.extra
	err := e.trust.set(certificates)
	if err == nil {
		err = e.start(ctx, before, after)
	}
	if err != nil {
		want, err = have, errors.Join(err, e.trust.set(trusted))
	}
	if now := e.file.content(); len(now.differ(want)) > 0 {
		err = errors.Join(err, e.reload(ctx, now, want))
	}
	return err
}

// start restarts dockerd with after. Where it does not start, before is in force again, and the error says why.
func (e *Engine) start(ctx context.Context, before, after settings) error {
	if err := e.file.set(after, before); err != nil {
		return err
	}
	e.applying.Store(true)
	defer e.applying.Store(false)
	if err := e.daemon.restart(ctx); err != nil {
		return errors.Join(fmt.Errorf("start docker with new settings: %w", err), e.file.set(before, nil), e.daemon.restart(ctx))
	}
	if err := e.file.started(); err != nil {
		return fmt.Errorf("docker does not start with these settings: %w", err)
	}
	return nil
}

// kept says why a new dockerd with other values for keys would lose containers of state, or not go by the keys.
func kept(keys []string, state info) error {
	if !state.running() {
		return nil
	}
	if state.swarm() {
		return fmt.Errorf("%w: docker is part of a swarm, whose containers end with it", api.ErrRestart)
	}
	stay := slices.DeleteFunc(slices.Clone(keys), func(key string) bool { return !slices.Contains(bridging, key) })
	if len(stay) > 0 {
		return fmt.Errorf("%w: docker does not change %s while containers run", api.ErrRestart, strings.Join(stay, ", "))
	}
	return nil
}

// leaveTime bounds the last reload before the end.
const leaveTime = 10 * time.Second

// leave has a dockerd that ends for good take its containers along, in the time that each asks for: the machine ends too.
func (e *Engine) leave() {
	now := e.file.content()
	if e.applying.Load() || !now.live() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTime)
	defer cancel()
	if err := write(e.file.path, now.with(liveRestore, false)); err != nil {
		return
	}
	_ = e.daemon.reload(ctx)
	_ = write(e.file.path, now)
}

// dockerd is the daemon of a real guest.
type dockerd struct{ e *Engine }

// validate costs a start of dockerd that ends at once: about a second of one emulated processor.
func (d dockerd) validate(ctx context.Context, s settings) error {
	path := d.e.file.path + ".check"
	if err := write(path, s); err != nil {
		return err
	}
	defer os.Remove(path)
	var out bytes.Buffer
	status, err := d.e.c.Reaper.Command(ctx, &out, dockerdPath, "--validate", "--config-file", path)
	if err != nil {
		return err
	}
	if status.ExitStatus() != 0 {
		text := reason(strings.Split(out.String(), "\n"))
		return fmt.Errorf("docker refuses these settings: %s", strings.TrimPrefix(text, "unable to configure the Docker daemon with file "+path+": "))
	}
	return nil
}

func (d dockerd) reload(ctx context.Context) error {
	d.e.said.forget()
	from := time.Now()
	if err := d.e.dockerd.Reload(ctx); err != nil {
		return err
	}
	taken, err := reloaded(ctx, Socket, from)
	if err != nil || taken {
		return err
	}
	return fmt.Errorf("docker refuses these settings: %s", d.e.said.reason())
}

func (d dockerd) restart(ctx context.Context) error { return d.e.c.Restart(ctx) }

func (d dockerd) info(ctx context.Context) (info, error) { return getInfo(ctx, Socket) }
