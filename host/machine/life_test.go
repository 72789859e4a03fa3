package machine_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/vm"
	"github.com/google/go-cmp/cmp"
)

// TestEnds has machines that run end in every way but the plain Stop.
func TestEnds(t *testing.T) {
	died := errors.New("killed")
	for _, test := range []struct {
		name   string
		change func(*world)
		end    func(t *testing.T, w *world)
		err    error
		state  api.State
		asked  bool // the guest is asked to shut down
	}{
		{"signal", nil, func(t *testing.T, w *world) { w.cancel() }, nil, api.Stopped, true},
		{"guest powers off", nil, func(t *testing.T, w *world) { close(w.guest.off) }, nil, api.Stopped, false},
		{"force", nil, func(t *testing.T, w *world) { w.Stop(true) }, nil, api.Stopped, false},
		{"virtual machine dies", func(w *world) { w.guest.shutdown = died }, func(t *testing.T, w *world) { close(w.guest.off) }, vm.ErrCrashed, api.Failed, false},
		{"virtual machine dies while it shuts down", func(w *world) { w.guest.shutdown = died }, func(t *testing.T, w *world) { w.Stop(false) }, vm.ErrCrashed, api.Failed, true},
		{"guest fails", nil, func(t *testing.T, w *world) {
			w.guest.later <- guestapi.Event{Kind: guestapi.EventFailed, Detail: "disk"}
		}, vm.ErrGuestFailed, api.Failed, true},
		{"guest does not shut down", func(w *world) {
			w.guest.deaf, w.cfg.Timeouts.Shutdown = true, 100*time.Millisecond
		}, func(t *testing.T, w *world) { w.Stop(false) }, nil, api.Stopped, true},
		{"force while it shuts down", func(w *world) { w.guest.deaf = true }, func(t *testing.T, w *world) {
			w.Stop(false)
			w.until(t, "rest", func(e api.Event) bool { return e.Text == "waiting for containers and disks to come to rest" })
			w.Stop(true)
			w.Stop(true)
		}, nil, api.Stopped, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := launch(t, test.change)
			w.untilState(t, api.Running)
			test.end(t, w)
			if err := w.wait(t); !errors.Is(err, test.err) || test.err == nil && err != nil {
				t.Errorf("Run returned %v: want %v", err, test.err)
			}
			st := w.Status()
			if st.State != test.state || (st.Error != nil) != (test.err != nil) {
				t.Errorf("status is %+v", st)
			}
			if states := w.states(t); states[len(states)-1] != test.state {
				t.Errorf("states were %v", states)
			}
			if w.guest.wasTold() != test.asked && test.name != "force" {
				t.Errorf("guest was asked: %v", !test.asked)
			}
			if w.docker.unset != 1 {
				t.Errorf("docker context was unset %d times", w.docker.unset)
			}
		})
	}
}

// TestContextFails has docker's own settings resist: the machine runs all the same, and says so.
func TestContextFails(t *testing.T) {
	w := launch(t, func(w *world) { w.docker.err = errors.New("config.json is not JSON") })
	w.untilState(t, api.Running)
	if st := w.Status(); st.Note != "it is a fake; docker context: config.json is not JSON" || st.Context != "" || st.Error != nil {
		t.Errorf("status is %+v", st)
	}
	w = launch(t, func(w *world) { w.cfg.Docker = nil })
	w.untilState(t, api.Running)
	if st := w.Status(); st.Context != "" {
		t.Errorf("nobody asked for a context, status has %q", st.Context)
	}
}

// TestDialWaits has a docker client come before the engine.
func TestDialWaits(t *testing.T) {
	w := launch(t, func(w *world) { w.guest.events = []guestapi.Event{} })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := w.DialDocker(ctx); api.CodeOf(err) != api.CodeGuestTimeout || !strings.Contains(err.Error(), "still starting") {
		t.Errorf("an impatient client: error is %v", err)
	}
	patient := make(chan error)
	go func() {
		c, err := w.DialDocker(t.Context())
		if err == nil {
			c.Close()
		}
		patient <- err
	}()
	w.guest.later <- guestapi.Event{Kind: guestapi.EventReady}
	if err := <-patient; err != nil {
		t.Errorf("a patient client: error is %v", err)
	}
}

// TestWatch has watchers come early, late and after the end: all see the same.
func TestWatch(t *testing.T) {
	w := launch(t, nil)
	w.untilState(t, api.Running)
	enough := errors.New("enough")
	if err := w.Watch(t.Context(), func(api.Event) error { return enough }); err != enough {
		t.Errorf("a watcher that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	if err := w.Watch(ctx, func(api.Event) error {
		n++
		cancel()
		return nil
	}); !errors.Is(err, context.Canceled) || n < 5 {
		t.Errorf("a watcher that is told to end: %d events, %v", n, err)
	}
	w.Stop(false)
	w.wait(t)
	var late []api.Event
	if err := w.Watch(t.Context(), func(e api.Event) error {
		late = append(late, e)
		return nil
	}); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(w.heard(), late); diff != "" {
		t.Errorf("who came late heard something else (-first +late):\n%s", diff)
	}
	var steps []string
	for _, e := range late {
		if e.Time.IsZero() {
			t.Errorf("event %+v has no time", e)
		}
		if e.Kind == api.EventStep {
			steps = append(steps, e.Step.Where+" "+e.Step.Name)
			if e.Step.End < e.Step.Start || e.Step.End > time.Since(w.cfg.Since) {
				t.Errorf("step %+v", e.Step)
			}
		}
	}
	for _, want := range []string{"host launch", "host probe fake", "host image", "host start virtual machine", "host guest boots", "guest kernel", "guest dockerd", "host engine starts", "host first ping"} {
		if !slices.Contains(steps, want) {
			t.Errorf("steps are %q: want %q", steps, want)
		}
	}
}

// TestGuestTalks has a guest that says too much, and what nobody should print.
func TestGuestTalks(t *testing.T) {
	w := launch(t, nil)
	w.untilState(t, api.Running)
	evil := "a\x1b[31m\u202eb\xff\x00\r\n" + strings.Repeat("ü", 5000)
	w.guest.later <- guestapi.Event{Kind: guestapi.EventService, Name: evil, State: evil, Detail: evil}
	w.guest.later <- guestapi.Event{Kind: guestapi.EventStep, Name: evil, Start: -1 << 62, End: 1 << 62}
	w.guest.later <- guestapi.Event{Kind: "news", Name: evil}
	for i := range 100 {
		w.guest.later <- guestapi.Event{Kind: guestapi.EventService, Name: fmt.Sprint("s", i), State: guestapi.ServiceFailed}
	}
	for range 2000 { // more than is remembered
		w.guest.later <- guestapi.Event{Kind: guestapi.EventService, Name: "dockerd", State: guestapi.ServiceFailed}
	}
	w.guest.later <- guestapi.Event{Kind: guestapi.EventReady} // a second time
	w.until(t, "second ready", func(e api.Event) bool { return e.Text == "the Docker Engine answers again" })
	st := w.Status()
	if len(st.Services) > 50 || st.Services[0] != (api.Service{Name: "dockerd", State: "failed", Restarts: 2000}) {
		t.Errorf("services are %d, the first %+v", len(st.Services), st.Services[0])
	}
	w.Stop(false)
	w.wait(t)
	var kept []api.Event
	w.Watch(t.Context(), func(e api.Event) error {
		kept = append(kept, e)
		return nil
	})
	if len(kept) > 1000 || kept[0].Kind != api.EventState || kept[0].State != api.Starting {
		t.Errorf("%d events are kept, the first is %+v", len(kept), kept[0])
	}
	for _, e := range w.heard() {
		texts := []string{e.Text}
		if e.Service != nil {
			texts = append(texts, e.Service.Name, e.Service.State, e.Service.Detail)
		}
		if e.Step != nil {
			texts = append(texts, e.Step.Name)
		}
		for _, s := range texts {
			if len(s) > 600 || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }) {
				t.Errorf("a watcher was told %q", s)
			}
		}
	}
}
