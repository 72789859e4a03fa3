package api

import (
	"context"
	"fmt"
	"time"
)

const (
	syncGoal  = 40 * time.Millisecond // of doubt: well within the 100 ms that a guest's clock may be wrong after a sleep
	syncTries = 6
)

// SyncTime sets the guest's clock and returns by how much it may be wrong. An order takes time to travel and the guest cannot
// know how much, so that one that took long is given again, with half of what the last took added.
func (c *Client) SyncTime(ctx context.Context) (doubt time.Duration, err error) {
	travel := time.Duration(0)
	for range syncTries {
		began := time.Now()
		if err := c.SetTime(ctx, began.Add(travel)); err != nil {
			return 0, fmt.Errorf("sync guest's clock: %w", err)
		}
		took := time.Since(began)
		doubt = max(travel, took-travel) // the guest took the order at its beginning, at its end, or in between
		if doubt <= syncGoal {
			break
		}
		travel = took / 2
	}
	return doubt, nil
}
