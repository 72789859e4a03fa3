// Package drivers is the list of hypervisors per operating system and nothing else: cmd/coracled picks from it what drives
// its machine. On Linux that is QEMU; the lists of other systems are empty until vm/vz and vm/wsl are written.
package drivers

import (
	"fmt"
	"log/slog"
	"runtime"

	"github.com/coracle-engine/coracle/vm"
)

// Default is the driver that a machine gets where its settings name none: the first of All. The error is of class
// vm.ErrNotSupported on a system that has none. cache is as for All.
func Default(log *slog.Logger, cache string) (vm.Driver, error) {
	all := All(log, cache)
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: Coracle has no driver for virtual machines on %s yet", vm.ErrNotSupported, runtime.GOOS)
	}
	return all[0], nil
}
