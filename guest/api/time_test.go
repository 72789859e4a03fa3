package api_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
)

// slowAgent takes the first orders late and answers them later.
type slowAgent struct {
	*fakeAgent
	before, after []time.Duration
	wrong         time.Duration // the clock's error after the newest order
	orders        int
}

func (a *slowAgent) SetTime(t time.Time) error {
	if i := a.orders; i < len(a.before) {
		time.Sleep(a.before[i])
		defer time.Sleep(a.after[i])
	}
	a.orders++
	a.wrong = time.Until(t)
	return nil
}

func TestSyncTime(t *testing.T) {
	const slow = 200 * time.Millisecond
	for name, c := range map[string]struct {
		before, after []time.Duration
		orders        int
	}{
		"at once":           {nil, nil, 1},
		"first one is slow": {[]time.Duration{slow, 0, 0}, []time.Duration{0, 0, 0}, 3},
		"slow to answer":    {[]time.Duration{0, 0, 0}, []time.Duration{slow, 0, 0}, 3},
	} {
		t.Run(name, func(t *testing.T) {
			a := &slowAgent{fakeAgent: newFakeAgent(), before: c.before, after: c.after}
			doubt, err := connect(t, a).SyncTime(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if a.wrong.Abs() > doubt {
				t.Errorf("the clock is wrong by %v: told %v", a.wrong, doubt)
			}
			if doubt < 30*time.Millisecond && a.orders != c.orders { // else the test's machine is the slow one
				t.Errorf("%d orders: want %d", a.orders, c.orders)
			}
		})
	}
	t.Run("always slow", func(t *testing.T) {
		pause := []time.Duration{50 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond, 50 * time.Millisecond}
		a := &slowAgent{fakeAgent: newFakeAgent(), before: pause, after: pause}
		doubt, err := connect(t, a).SyncTime(t.Context())
		if err != nil || doubt < 50*time.Millisecond || a.wrong.Abs() > doubt {
			t.Errorf("SyncTime() = %v, %v with the clock wrong by %v", doubt, err, a.wrong)
		}
	})
}

func TestNeedsRestart(t *testing.T) {
	for err, want := range map[error]bool{fmt.Errorf("swarm is active: %w", api.ErrRestart): true, errors.New("other"): false} {
		f := newFakeAgent()
		f.applyErr = err
		if got := connect(t, f).Apply(t.Context(), api.Spec{}); got == nil || errors.Is(got, api.ErrRestart) != want {
			t.Errorf("Apply() = %v after %v", got, err)
		}
	}
}
