package config

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/windows"
)

// memoryStatus is MEMORYSTATUSEX (sysinfoapi.h).
type memoryStatus struct {
	length, load uint32
	total        uint64
	_            [6]uint64
}

// ThisHost measures the host that we run on.
func ThisHost() (Host, error) {
	m := memoryStatus{length: uint32(unsafe.Sizeof(memoryStatus{}))}
	call := windows.NewLazySystemDLL("kernel32.dll").NewProc("GlobalMemoryStatusEx")
	if ok, _, err := call.Call(uintptr(unsafe.Pointer(&m))); ok == 0 {
		return Host{}, fmt.Errorf("measure host's memory: %w", err)
	}
	return Host{CPUs: runtime.NumCPU(), Memory: int64(m.total), Home: home()}, nil
}
