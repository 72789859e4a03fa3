package wake

import (
	"context"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/windows"
)

var (
	powrprof   = windows.NewLazySystemDLL("powrprof.dll")
	register   = powrprof.NewProc("PowerRegisterSuspendResumeNotification")
	unregister = powrprof.NewProc("PowerUnregisterSuspendResumeNotification")
)

const (
	deviceNotifyCallback = 2 // DEVICE_NOTIFY_CALLBACK
	resumeSuspend        = 7 // PBT_APMRESUMESUSPEND
	resumeAutomatic      = 18
)

// subscription is a DEVICE_NOTIFY_SUBSCRIBE_PARAMETERS.
type subscription struct {
	callback uintptr
	context  uintptr
}

func watch(ctx context.Context, woke func()) error {
	if err := register.Find(); err != nil {
		return fmt.Errorf("watch for sleep: %w", err)
	}
	s := &subscription{callback: windows.NewCallback(func(_, kind, _ uintptr) uintptr {
		if kind == resumeSuspend || kind == resumeAutomatic {
			woke()
		}
		return 0
	})}
	var handle uintptr
	if code, _, _ := register.Call(deviceNotifyCallback, uintptr(unsafe.Pointer(s)), uintptr(unsafe.Pointer(&handle))); code != 0 {
		return fmt.Errorf("watch for sleep: %w", windows.Errno(code))
	}
	<-ctx.Done()
	_, _, _ = unregister.Call(handle)
	runtime.KeepAlive(s)
	return ctx.Err()
}
