package api

import "syscall"

const detachedProcess = 0x00000008 // DETACHED_PROCESS, winbase.h: no console

// detached gives a process no console and a process group of its own, so that ctrl-C in ours does not reach it.
func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: detachedProcess | syscall.CREATE_NEW_PROCESS_GROUP}
}
