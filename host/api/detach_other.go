//go:build !windows

package api

import "syscall"

// detached gives a process a session of its own: neither ctrl-C in our terminal nor its end reaches it.
func detached() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
