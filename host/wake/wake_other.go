//go:build !linux && !windows

package wake

import "context"

func watch(ctx context.Context, _ func()) error {
	<-ctx.Done()
	return ctx.Err()
}
