// Package socket opens the local doors of a machine: a unix socket that only its owner can use. It neither knows nor cares
// what is spoken there; its neighbours are host/api, which dials, and the host process, which listens for host/server and
// host/dockerproxy.
package socket

import (
	"fmt"

	"github.com/coracle-engine/coracle/host/paths"
)

func checkLen(path string) error {
	if len(path) > paths.MaxSocket {
		return fmt.Errorf("%w: %s has %d bytes, at most %d", paths.ErrTooLong, path, len(path), paths.MaxSocket)
	}
	return nil
}
