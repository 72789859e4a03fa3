package forward

import (
	"errors"

	"golang.org/x/sys/windows"
)

func isInUse(err error) bool { return errors.Is(err, windows.WSAEADDRINUSE) }

// isDenied is also true of a port that the system keeps for itself or another program holds for itself alone.
func isDenied(err error) bool { return errors.Is(err, windows.WSAEACCES) }

func isNoAddress(err error) bool { return errors.Is(err, windows.WSAEADDRNOTAVAIL) }
