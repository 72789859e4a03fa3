//go:build linux

package qemu

import (
	"context"
	"encoding/json"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-engine/coracle/vm"
)

// events is what the monitor reported; the machine's mu guards it.
type events struct {
	notify   func(vm.Event)
	shutdown string // the reason of the SHUTDOWN event
	full     bool   // the guest stands still because a disk of the host is full
	gaveUp   bool   // KVM gave up
	// What attend reacts to; each holds at most one.
	paused   chan struct{} // full became true
	internal chan struct{} // the machine stopped unasked
}

// Notify has f told of full disks and the like.
func (m *machine) Notify(f func(vm.Event)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.events.notify = f
}

// event takes note of what the monitor says (QEMU's qapi/run-state.json, qapi/block-core.json). It runs in the monitor's
// reader and waits for nothing.
func (m *machine) event(name string, data json.RawMessage) {
	m.log.Debug("QEMU event", "event", name, "data", string(data))
	switch name {
	case "SHUTDOWN":
		var d struct{ Reason string }
		if json.Unmarshal(data, &d) == nil {
			m.mu.Lock()
			m.events.shutdown = d.Reason
			m.mu.Unlock()
		}
	case "BLOCK_IO_ERROR":
		m.blockError(data)
	case "STOP":
		m.mu.Lock()
		full := m.events.full
		m.mu.Unlock()
		if !full { // a full disk announces itself before it stops the machine
			poke(m.events.internal)
		}
	case "RESUME":
		m.mu.Lock()
		was := m.events.full
		m.events.full = false
		m.mu.Unlock()
		if was {
			m.tell(vm.Event{Kind: vm.EventResumed, Detail: "there is space on the host's disk again; the machine goes on"})
		}
	}
}

func (m *machine) blockError(data json.RawMessage) {
	var d struct {
		Operation string
		Action    string
		Nospace   bool
		Reason    string
	}
	if json.Unmarshal(data, &d) != nil {
		return
	}
	if d.Action != "stop" {
		m.tell(vm.Event{Kind: vm.EventDiskError, Detail: "the host could not " + d.Operation + " a disk: " + d.Reason})
		return
	}
	m.mu.Lock()
	again := m.events.full
	m.events.full = true
	m.mu.Unlock()
	if !again {
		m.tell(vm.Event{Kind: vm.EventDiskFull, Detail: "the host's disk is full: the machine stands still until there is space again"})
		poke(m.events.paused)
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (m *machine) tell(e vm.Event) {
	m.mu.Lock()
	f := m.events.notify
	m.mu.Unlock()
	m.log.Warn("machine event", "kind", string(e.Kind), "detail", e.Detail)
	if f != nil {
		f(e)
	}
}

// attend does what events ask for, until ctx ends.
func (m *machine) attend(ctx context.Context) {
	for {
		select {
		case <-m.events.paused:
			m.awaitSpace(ctx)
		case <-m.events.internal:
			m.checkInternal(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// room is how many bytes must be free before a machine goes on that stood still for want of space.
const room = 64 << 20

// awaitSpace lets the machine go on once its disks' file systems have room. No file system tells when that is, so this
// looks from time to time.
func (m *machine) awaitSpace(ctx context.Context) {
	look := time.NewTicker(m.limits.retry)
	defer look.Stop()
	for {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		if !m.hasRoom() {
			continue
		}
		if err := m.mon.execute(ctx, "cont", nil); err != nil {
			m.log.Warn("could not let the machine go on", "error", err)
			continue
		}
		return
	}
}

func (m *machine) hasRoom() bool {
	for _, d := range m.launch.cfg.Disks {
		var fs unix.Statfs_t
		if d.ReadOnly || unix.Statfs(filepath.Dir(d.Path), &fs) != nil {
			continue
		}
		if fs.Bavail*uint64(fs.Bsize) < room {
			return false
		}
	}
	return true
}

// checkInternal ends a machine that KVM could not run: QEMU pauses it and would wait for ever.
func (m *machine) checkInternal(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, m.limits.quit)
	defer cancel()
	var status struct{ Status string }
	if err := m.mon.execute(ctx, "query-status", &status); err != nil || status.Status != "internal-error" {
		return
	}
	m.mu.Lock()
	m.events.gaveUp = true
	m.mu.Unlock()
	m.broken()
	m.proc.kill()
}
