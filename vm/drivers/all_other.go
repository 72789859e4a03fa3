//go:build !linux

package drivers

import (
	"log/slog"

	"github.com/coracle-engine/coracle/vm"
)

// All is every driver of this system: none yet.
func All(log *slog.Logger, cache string) []vm.Driver { return nil }
