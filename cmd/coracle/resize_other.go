//go:build !windows

package main

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/coracle-engine/coracle/host/api"
)

// watchSize tells each new size of the terminal fd until stop is called, which waits for its end.
func watchSize(fd int) (sizes <-chan api.Size, stop func()) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	done, out := make(chan struct{}), make(chan api.Size)
	var telling sync.WaitGroup
	telling.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-changed:
			}
			select {
			case <-done:
				return
			case out <- terminalSize(fd):
			}
		}
	})
	return out, func() {
		signal.Stop(changed)
		close(done)
		telling.Wait()
	}
}
