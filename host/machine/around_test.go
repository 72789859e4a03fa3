package machine_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/google/go-cmp/cmp"
)

func TestPublish(t *testing.T) {
	w := launch(t, nil)
	w.untilState(t, api.Running)
	list := []guestapi.Forward{{ID: 1, Protocol: "tcp", Port: 80, To: "172.17.0.2:80"}, {ID: 2, Protocol: "tcp", Port: 1, To: "172.17.0.2:1"}}
	w.guest.later <- guestapi.Event{Kind: guestapi.EventForwards, Forwards: list}
	want := []guestapi.Publication{{ID: 1}, {ID: 2, Error: "address already in use"}}
	if diff := cmp.Diff(want, <-w.guest.published); diff != "" {
		t.Errorf("the guest was told (-want +got):\n%s", diff)
	}
	w.guest.later <- guestapi.Event{Kind: guestapi.EventForwards, Forwards: make([]guestapi.Forward, 8000)}
	if got := len(<-w.guest.published); got != 5000 {
		t.Errorf("a hostile guest had %d ports opened", got)
	}
	w.Stop(false)
	w.wait(t)
	w.around.mu.Lock()
	defer w.around.mu.Unlock()
	if got := w.around.published; got[len(got)-1] != nil {
		t.Errorf("after the end %d ports are open", len(got[len(got)-1]))
	}
}

func TestServe(t *testing.T) {
	w := launch(t, nil)
	g := <-w.around.served
	w.untilState(t, api.Running)
	c, err := g.Dial(t.Context(), guestapi.PortDocker)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("a stream to the guest: %v", err)
	}
	if w.opened.Network.MTU != 4000 {
		t.Errorf("the machine was opened with %+v", w.opened.Network)
	}
	before := w.guest.clock()
	g.Woke()
	w.until(t, "clock", func(api.Event) bool { return true })
	for w.guest.clock().Equal(before) {
		time.Sleep(time.Millisecond)
	}
}

func TestApply(t *testing.T) {
	w := launch(t, nil)
	w.untilState(t, api.Running)
	now := w.Status().Settings
	now.CPUs, now.Engine = 64, []byte(`{"debug":true}`)
	if err := w.Apply(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	now.CPUs = 2 // counts from the next start
	if diff := cmp.Diff(now, w.Status().Settings); diff != "" {
		t.Errorf("settings (-want +got):\n%s", diff)
	}
	bad := now
	bad.Engine = []byte(`{"bad":1}`)
	if err := w.Apply(t.Context(), bad); api.CodeOf(err) != api.CodeEngine || err.Error() != "dockerd does not know it" {
		t.Errorf("the guest's refusal came as %v", err)
	}
	if diff := cmp.Diff(now, w.Status().Settings); diff != "" {
		t.Errorf("settings after a refusal (-want +got):\n%s", diff)
	}
	if got := w.guest.applied(); string(got.Daemon) != `{"debug":true}` || got.Hostname != "coracle-work" {
		t.Errorf("the guest has %+v", got)
	}
	w.around.err = errors.New("no such directory")
	if err := w.Apply(t.Context(), bad); !errors.Is(err, w.around.err) {
		t.Errorf("settings that the host cannot put into force: %v", err)
	}
}

func TestApplyTooEarly(t *testing.T) {
	w := launch(t, func(w *world) { w.guest.events = []guestapi.Event{} })
	if err := w.Apply(t.Context(), api.Settings{}); api.CodeOf(err) != api.CodeNotRunning {
		t.Errorf("settings for a machine that starts: %v", err)
	}
}

func TestSettingsRefused(t *testing.T) {
	w := launch(t, func(w *world) { w.around.err = api.Errorf(api.CodeConfig, "bad share") })
	if err := w.wait(t); api.CodeOf(err) != api.CodeConfig {
		t.Errorf("Run returned %v", err)
	}
}

func TestEventsResume(t *testing.T) {
	w := launch(t, nil)
	w.untilState(t, api.Running)
	w.guest.later <- guestapi.Event{Kind: "break"}
	w.guest.later <- guestapi.Event{Kind: guestapi.EventService, Name: "dockerd", State: guestapi.ServiceFailed, End: time.Hour}
	w.until(t, "news after the break", func(e api.Event) bool {
		return e.Service != nil && e.Service.State == guestapi.ServiceFailed
	})
	steps := 0
	w.Stop(false)
	w.wait(t)
	w.Watch(context.Background(), func(e api.Event) error {
		if e.Step != nil && e.Step.Where == "guest" && e.Step.Name == "kernel" {
			steps++
		}
		return nil
	})
	if steps != 1 {
		t.Errorf("the kernel's step was told %d times", steps)
	}
}

func TestStartsWithoutWhatFailed(t *testing.T) {
	w := launch(t, func(w *world) {
		w.guest.events = append([]guestapi.Event{{Kind: guestapi.EventService, Name: "engine settings", State: guestapi.ServiceFailed, Detail: "unknown key"}}, goodStart...)
	})
	w.untilState(t, api.Running)
	if st := w.Status(); !strings.Contains(st.Note, "engine settings: unknown key") {
		t.Errorf("the note is %q", st.Note)
	}
}
