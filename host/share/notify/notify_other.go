//go:build !linux

package notify

import (
	"errors"
	"fmt"
	"runtime"
)

// Watcher watches nothing on this system.
type Watcher struct{}

// New fails with errors.ErrUnsupported.
func New() (*Watcher, error) {
	return nil, fmt.Errorf("watch directories on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// Add fails with errors.ErrUnsupported.
func (*Watcher) Add(int) (ID, error) { return 0, errors.ErrUnsupported }

// Remove fails with errors.ErrUnsupported.
func (*Watcher) Remove(ID) error { return errors.ErrUnsupported }

// Events returns a channel that never carries anything.
func (*Watcher) Events() <-chan []Event { return nil }

// Close does nothing.
func (*Watcher) Close() error { return nil }
