package wake

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWatchHearsTheClock sets the clock to what it is: to the kernel that is a jump too.
func TestWatchHearsTheClock(t *testing.T) {
	set := func() error {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			return err
		}
		return unix.ClockSettime(unix.CLOCK_REALTIME, &now)
	}
	if err := set(); err != nil {
		t.Skipf("setting the clock needs CAP_SYS_TIME (%v): run the tests as root", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	woke := make(chan struct{}, 100)
	var wg sync.WaitGroup
	wg.Go(func() { _ = Watch(ctx, func() { woke <- struct{}{} }) })
	defer wg.Wait()
	defer cancel()
	for i := range 3 {
		heard := false
		for end := time.After(10 * time.Second); !heard; {
			if err := set(); err != nil { // again, since Watch may not have begun
				t.Fatal(err)
			}
			select {
			case <-woke:
				heard = true
			case <-time.After(100 * time.Millisecond):
			case <-end:
				t.Fatalf("jump %d was not heard", i)
			}
		}
	}
	time.Sleep(50 * time.Millisecond)
	for len(woke) > 0 {
		<-woke
	}
	select {
	case <-woke:
		t.Error("woke without a jump")
	case <-time.After(200 * time.Millisecond):
	}
}

// TestWatchOutlivesAHurry sets the clock again and again, so that it jumps also while the timer is being set anew.
func TestWatchOutlivesAHurry(t *testing.T) {
	var now unix.Timespec
	set := func() error {
		return errors.Join(unix.ClockGettime(unix.CLOCK_REALTIME, &now), unix.ClockSettime(unix.CLOCK_REALTIME, &now))
	}
	if err := set(); err != nil {
		t.Skipf("setting the clock needs CAP_SYS_TIME (%v): run the tests as root", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- Watch(ctx, func() {}) }()
	for range 20000 {
		if err := set(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended: %v", err)
	}
}
