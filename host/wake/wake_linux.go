package wake

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// never is a time that does not come: the timer is for its cancellation.
const never = 1 << 40 // seconds

func watch(ctx context.Context, woke func()) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch the clock: %w", err)
	}
	timer := os.NewFile(uintptr(fd), "clock") // it is nonblocking, so that Close ends Read
	defer timer.Close()
	defer context.AfterFunc(ctx, func() { timer.Close() })()
	raw, err := timer.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch the clock: %w", err)
	}
	set := func() error {
		var serr error
		err := raw.Control(func(fd uintptr) {
			serr = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &unix.ItimerSpec{Value: unix.Timespec{Sec: never}}, nil)
		})
		return errors.Join(err, serr)
	}
	if err := set(); err != nil && !errors.Is(err, unix.ECANCELED) {
		return fmt.Errorf("watch the clock: %w", err)
	}
	for buf := make([]byte, 8); ; {
		_, err := timer.Read(buf)
		for errors.Is(err, unix.ECANCELED) && ctx.Err() == nil {
			woke()
			err = set() // says the same of a jump since the read
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("watch the clock: %w", err)
		}
	}
}
