package vm

import "errors"

// The classes of errors that drivers and the layers above return, to be found with errors.Is. Each has a code in host/api,
// so that it survives the wire.
var (
	ErrNotInstalled = errors.New("hypervisor is not installed")
	ErrNotSupported = errors.New("not supported here")
	ErrNotRunning   = errors.New("machine is not running")
	ErrRunning      = errors.New("machine is already running")
	ErrRefused      = errors.New("connection refused by the guest")
	ErrGuestTimeout = errors.New("guest did not answer in time")
	ErrAssetCorrupt = errors.New("image is damaged")
	ErrConfig       = errors.New("invalid setting")
	ErrNoMemory     = errors.New("not enough memory on the host")
	ErrDiskFull     = errors.New("no space left on the host's disk")
	ErrPortInUse    = errors.New("port is already in use")
	ErrCrashed      = errors.New("hypervisor ended unexpectedly")
	ErrGuestFailed  = errors.New("guest could not start")
)
