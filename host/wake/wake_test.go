package wake

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestWatchEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- Watch(ctx, func() {}) }()
	select {
	case err := <-done:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Watch() = %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Watch outlives its context")
	}
}
