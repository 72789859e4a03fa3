//go:build !windows

package forward

import (
	"errors"
	"syscall"
)

func isInUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }

func isDenied(err error) bool { return errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) }

func isNoAddress(err error) bool { return errors.Is(err, syscall.EADDRNOTAVAIL) }
