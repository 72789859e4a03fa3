//go:build !linux

package main

import (
	"context"
	"time"
)

// lookAgain is how often a followed file is looked at. Windows tells of writes through an open handle only when that is
// closed, so waiting for its notifications would show a living log late; macOS shares the simple way.
const lookAgain = 250 * time.Millisecond

// watchFile calls changed again and again until ctx ends or changed fails.
func watchFile(ctx context.Context, _ string, changed func() error) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		if err := changed(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
