// Package socket opens the local doors of a machine: a unix socket that only its owner can use. It neither knows nor cares
// what is spoken there; its neighbours are host/api, which dials, and the host process, which listens for host/server and
// host/dockerproxy.
package socket

import (
	"errors"
	"fmt"
)

// maxPath is what sun_path holds everywhere: 104 bytes with the zero on macOS.
const maxPath = 103

// ErrTooLong says that a path cannot be a socket's.
var ErrTooLong = errors.New("path is too long for a socket")

func checkLen(path string) error {
	if len(path) > maxPath {
		return fmt.Errorf("%w: %s has %d bytes, at most %d", ErrTooLong, path, len(path), maxPath)
	}
	return nil
}
