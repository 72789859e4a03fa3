package drivers

import (
	"log/slog"
	"path/filepath"

	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/qemu"
)

// All is every driver of this system, the best first. cache is a directory where drivers remember what a probe found; it is
// made when needed, and "" remembers nothing.
func All(log *slog.Logger, cache string) []vm.Driver {
	if cache != "" {
		cache = filepath.Join(cache, "qemu.json")
	}
	return []vm.Driver{qemu.New(log, cache)}
}
