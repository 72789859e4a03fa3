package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/vm"
)

// The guest is not trusted: what it says of itself is bounded.
const (
	maxText     = 500 // bytes of a name or a reason
	maxServices = 50
	maxSteps    = 500
)

// follower turns the guest's events into ours.
type follower struct {
	m *Machine
	b *boot
	// offset is when the guest's kernel started, on our own time line: an event cannot come before it happened, so it is the
	// least difference seen between hearing of an event and its own time. It is good once a fresh event has come, which is
	// why steps wait for the first that says that the start is over.
	offset  time.Duration
	waiting []guestapi.Event
	over    bool
	last    time.Duration // when the newest event happened
	before  time.Duration // what happened until then is known from an earlier stream
}

// follow listens to the guest until ctx ends or the guest goes away.
func (m *Machine) follow(ctx context.Context, b *boot) {
	f := &follower{m: m, b: b, offset: time.Since(m.cfg.Since)}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := b.guest.Watch(ctx, func(e guestapi.Event) error {
			pause = firstPause
			f.hear(e)
			return nil
		})
		if ctx.Err() != nil || m.diesNow(ctx, b) || ctx.Err() != nil {
			return
		}
		select {
		case <-b.ready:
			m.cfg.Log.Warn("the guest's events broke off: listening again", "err", err, "pause", pause)
		default:
			b.giveUp(fmt.Errorf("listen to the guest: %w: %w", vm.ErrGuestFailed, err))
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		f.before = f.last
	}
}

// The pauses between two attempts to listen to a guest whose events broke off.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

func (f *follower) hear(e guestapi.Event) {
	e.Name, e.Detail, e.State = clean(e.Name), clean(e.Detail), clean(e.State)
	if e.Kind != guestapi.EventForwards && f.before > 0 && e.End <= f.before {
		return
	}
	f.last = max(f.last, e.End)
	f.offset = min(f.offset, time.Since(f.m.cfg.Since)-max(e.End, 0))
	switch e.Kind {
	case guestapi.EventStep:
		if !f.over && len(f.waiting) < maxSteps {
			f.waiting = append(f.waiting, e)
		} else if f.over {
			f.tell(e)
		}
	case guestapi.EventService:
		f.m.service(e)
	case guestapi.EventReady:
		f.finish()
		select {
		case <-f.b.ready:
			f.m.progress("the Docker Engine answers again")
		default:
			close(f.b.ready)
		}
	case guestapi.EventForwards:
		f.b.publish(e.Forwards)
	case guestapi.EventFailed:
		f.finish()
		f.b.giveUp(fmt.Errorf("%w: %s", vm.ErrGuestFailed, e.Detail))
	}
}

// finish tells the steps of the start.
func (f *follower) finish() {
	for _, e := range f.waiting {
		f.tell(e)
	}
	f.waiting, f.over = nil, true
}

func (f *follower) tell(e guestapi.Event) {
	f.m.publishStep(api.Step{Name: e.Name, Where: "guest", Start: f.offset + e.Start, End: f.offset + e.End})
}

// service keeps the status of one of the guest's services.
func (m *Machine) service(e guestapi.Event) {
	m.mu.Lock()
	i := 0
	for i < len(m.status.Services) && m.status.Services[i].Name != e.Name {
		i++
	}
	if i == len(m.status.Services) {
		if i == maxServices {
			m.mu.Unlock()
			return
		}
		m.status.Services = append(m.status.Services, api.Service{Name: e.Name})
	}
	s := &m.status.Services[i]
	s.State, s.Detail = e.State, e.Detail
	if e.State == guestapi.ServiceFailed {
		s.Restarts++
	}
	told := *s
	m.mu.Unlock()
	m.cfg.Log.Info("guest service", "name", told.Name, "state", told.State, "detail", told.Detail)
	m.events.publish(api.Event{Kind: api.EventService, Service: &told})
}

// clean makes a guest's text fit for a terminal and a log: printable, and short.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, s)
	if len(s) > maxText {
		s = strings.ToValidUTF8(s[:maxText], "") + "…"
	}
	return s
}

// Of the console an error shows no more than this.
const (
	tailBytes = 8 << 10
	tailLines = 8
)

// consoleTail is what the guest's console said last in this boot, to be appended to an error; empty where that is nothing.
func (m *Machine) consoleTail(b *boot) string {
	f, err := os.Open(m.cfg.VM.Console)
	if err != nil {
		return ""
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return ""
	}
	data := make([]byte, tailBytes)
	n, err := f.ReadAt(data, max(b.consoleFrom, st.Size()-tailBytes))
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	var lines []string
	for line := range bytes.Lines(data[:n]) {
		if text := clean(string(bytes.TrimSpace(line))); text != "" {
			lines = append(lines, "  "+text)
		}
	}
	if len(lines) == 0 {
		return ""
	}
	return "; the console's last lines:\n" + strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}
