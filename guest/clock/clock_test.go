//go:build linux

package clock

import (
	"testing"
	"time"
)

func TestSetRefusesThePast(t *testing.T) {
	for _, now := range []time.Time{{}, time.Unix(0, 0), earliest.Add(-time.Second)} {
		if err := Set(now); err == nil {
			t.Errorf("the clock was set to %v", now)
		}
	}
}

func TestUp(t *testing.T) {
	a := Up()
	if b := Up(); a <= 0 || b < a {
		t.Errorf("up for %v, then for %v", a, b)
	}
}
