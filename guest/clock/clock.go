//go:build linux

// Package clock sets the guest's time. The host tells it through guest/agent after the machine slept or was resumed: a
// guest's own clock stands still meanwhile.
package clock

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// earliest is before anything that could be told in earnest: no build of this program is older.
var earliest = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// near is how far from the truth a clock is left alone: a step, above all one back, does programs more harm.
const near = 5 * time.Millisecond

// Set makes now the time of day. guest/api's SyncTime tells how far the order's own travel makes that wrong.
func Set(now time.Time) error {
	if now.Before(earliest) {
		return fmt.Errorf("set clock to %s: that is before %s", now.UTC().Format(time.RFC3339), earliest.Format(time.RFC3339))
	}
	if time.Until(now).Abs() < near {
		return nil
	}
	ts, err := unix.TimeToTimespec(now)
	if err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set clock: %w", err)
	}
	return nil
}

// Up is the time since the kernel started, sleep included (CLOCK_BOOTTIME): the time that events carry.
func Up() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
