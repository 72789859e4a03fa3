package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fake is a service whose runs the test plays.
type fake struct {
	name string
	run  func(ctx context.Context, n int, ready func()) error // n counts from 1

	mu   sync.Mutex
	runs int
}

func (f *fake) Name() string { return f.name }
func (f *fake) Run(ctx context.Context, ready func()) error {
	f.mu.Lock()
	f.runs++
	n := f.runs
	f.mu.Unlock()
	return f.run(ctx, n, ready)
}

// steady is ready at once and runs until told to end.
func steady(name string) *fake {
	return &fake{name: name, run: func(ctx context.Context, _ int, ready func()) error {
		ready()
		<-ctx.Done()
		return ctx.Err()
	}}
}

// history notes a group's reports with their (virtual) time.
type history struct {
	mu    sync.Mutex
	began time.Time
	lines []string
}

func (h *history) report(name, state, _ string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lines = append(h.lines, fmt.Sprintf("%v %s %s", time.Since(h.began), name, state))
}

func (h *history) of(name string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, l := range h.lines {
		if strings.Contains(l, " "+name+" ") {
			out = append(out, l)
		}
	}
	return out
}

// supervise runs the units in a bubble of virtual time for d, calls during at its beginning, and returns what was reported.
func supervise(t *testing.T, d time.Duration, during func(ctx context.Context, g *Group), units ...Unit) *history {
	t.Helper()
	var h *history
	synctest.Test(t, func(t *testing.T) {
		h = &history{began: time.Now()}
		g, err := NewGroup(h.report, DefaultPause, units...)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		var wg sync.WaitGroup
		if during != nil {
			wg.Go(func() { during(ctx, g) })
		}
		g.Run(ctx)
		wg.Wait()
	})
	return h
}

func TestGroupBacksOff(t *testing.T) {
	broken := &fake{name: "a", run: func(context.Context, int, func()) error { return errors.New("broken") }}
	h := supervise(t, 100*time.Second, nil, Unit{Service: broken})
	var starts []string
	for _, l := range h.of("a") {
		if at, ok := strings.CutSuffix(l, " a starting"); ok {
			starts = append(starts, at)
		}
	}
	want := []string{"0s", "200ms", "600ms", "1.4s", "3s", "6.2s", "12.6s", "25.4s", "51s", "1m21s"} // 25.6 s, then 30 s
	if diff := cmp.Diff(want, starts); diff != "" {
		t.Errorf("starts differ: %s", diff)
	}
}

func TestGroupForgivesAfterStableRun(t *testing.T) {
	f := &fake{name: "a", run: func(_ context.Context, n int, ready func()) error {
		if n == 3 {
			ready()
			time.Sleep(2 * time.Minute)
		}
		return errors.New("broken")
	}}
	h := supervise(t, 3*time.Minute, nil, Unit{Service: f})
	if lines := h.of("a"); !slices.Contains(lines, "2m0.8s a starting") {
		t.Errorf("after two minutes of work the pause is not the first again: %v", lines)
	}
}

func TestGroupStartsByNeedAndStopsByUse(t *testing.T) {
	slow := func(name string) *fake {
		return &fake{name: name, run: func(ctx context.Context, _ int, ready func()) error {
			time.Sleep(time.Second)
			ready()
			<-ctx.Done()
			time.Sleep(time.Second)
			return nil
		}}
	}
	h := supervise(t, 10*time.Second, nil,
		Unit{Service: slow("disk")},
		Unit{Service: slow("engine"), Needs: []string{"disk"}},
		Unit{Service: slow("proxy"), Uses: []string{"engine"}})
	want := map[string][]string{
		"disk":   {"0s disk starting", "1s disk ready", "13s disk stopped"},
		"engine": {"1s engine starting", "2s engine ready", "12s engine stopped"},
		"proxy":  {"0s proxy starting", "1s proxy ready", "11s proxy stopped"},
	}
	for name, lines := range want {
		if diff := cmp.Diff(lines, h.of(name)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestGroupStopsWhileNeedIsNotReady(t *testing.T) {
	never := &fake{name: "a", run: func(ctx context.Context, _ int, _ func()) error { <-ctx.Done(); return nil }}
	b := steady("b")
	supervise(t, time.Second, nil, Unit{Service: never}, Unit{Service: b, Needs: []string{"a"}})
	if b.runs != 0 {
		t.Errorf("b ran %d times without what it needs", b.runs)
	}
}

func TestGroupRestart(t *testing.T) {
	a := steady("a")
	h := supervise(t, 10*time.Second, func(ctx context.Context, g *Group) {
		if err := g.Wait(ctx, "a"); err != nil {
			t.Error(err)
		}
		if err := g.Restart(ctx, "a"); err != nil {
			t.Error(err)
		}
	}, Unit{Service: a})
	if a.runs != 2 {
		t.Errorf("a ran %d times: want 2", a.runs)
	}
	want := []string{"0s a starting", "0s a ready", "0s a starting", "0s a ready", "10s a stopped"}
	if diff := cmp.Diff(want, h.of("a")); diff != "" {
		t.Error(diff)
	}
}

func TestGroupRestartEndsPause(t *testing.T) {
	a := &fake{name: "a", run: func(ctx context.Context, n int, ready func()) error {
		if n <= 6 {
			return errors.New("bad settings")
		}
		ready()
		<-ctx.Done()
		return nil
	}}
	supervise(t, 20*time.Second, func(ctx context.Context, g *Group) {
		time.Sleep(8 * time.Second) // in the pause from 6.2 s to 12.6 s
		began := time.Now()
		if err := g.Restart(ctx, "a"); err != nil {
			t.Error(err)
		}
		if d := time.Since(began); d != 0 {
			t.Errorf("Restart took %v: the pause was not cut short", d)
		}
	}, Unit{Service: a})
}

func TestGroupWait(t *testing.T) {
	broken := func() *fake {
		return &fake{name: "a", run: func(context.Context, int, func()) error { return errors.New("no disk") }}
	}
	supervise(t, 10*time.Second, func(ctx context.Context, g *Group) {
		if err := g.Wait(ctx, "a"); !errors.Is(err, ErrDown) || !strings.Contains(err.Error(), "no disk") {
			t.Errorf("Wait() = %v: want ErrDown and why", err)
		}
	}, Unit{Service: broken()})

	slow := &fake{name: "a", run: func(ctx context.Context, _ int, _ func()) error { <-ctx.Done(); return nil }}
	supervise(t, 10*time.Second, func(ctx context.Context, g *Group) {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := g.Wait(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Wait() = %v: want DeadlineExceeded", err)
		}
		if err := g.Wait(ctx, "b"); err == nil {
			t.Error("Wait for an unknown service succeeded")
		}
	}, Unit{Service: slow})
}

func TestGroupLateReadyIsDropped(t *testing.T) {
	first := make(chan func(), 1)
	a := &fake{name: "a", run: func(ctx context.Context, n int, ready func()) error {
		if n == 1 {
			first <- ready
			return errors.New("broken")
		}
		<-ctx.Done()
		return nil
	}}
	h := supervise(t, time.Second, func(ctx context.Context, g *Group) {
		late := <-first
		time.Sleep(100 * time.Millisecond) // in the pause
		late()
		time.Sleep(200 * time.Millisecond) // in the second run
		late()
	}, Unit{Service: a})
	want := []string{"0s a starting", "0s a failed", "200ms a starting", "1s a stopped"}
	if diff := cmp.Diff(want, h.of("a")); diff != "" {
		t.Error(diff)
	}
}

func TestNewGroupRefuses(t *testing.T) {
	for name, units := range map[string][]Unit{
		"unknown need": {{Service: steady("a"), Needs: []string{"b"}}},
		"later need":   {{Service: steady("a"), Needs: []string{"b"}}, {Service: steady("b")}},
		"same name":    {{Service: steady("a")}, {Service: steady("a")}},
	} {
		if _, err := NewGroup(func(string, string, string) {}, DefaultPause, units...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
