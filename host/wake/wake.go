// Package wake tells when this computer slept, or its clock was set: a virtual machine's clock is wrong then, and
// host/machine has it set again. It knows of no machine.
package wake

import "context"

// Watch calls woke after each sleep of the computer and each jump of its clock, until ctx ends, whose error it returns. woke
// must not block. Another error says that this system cannot tell, or no longer.
//
// Linux tells of both at once (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET), Windows of sleep (powrprof.h). macOS tells only
// programs that are linked with its frameworks, which this package is not: there Watch waits for ctx.
func Watch(ctx context.Context, woke func()) error { return watch(ctx, woke) }
