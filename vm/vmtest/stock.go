package vmtest

import (
	"os"
	"runtime"
	"runtime/pprof"
	"strings"
	"testing"
	"time"
)

// stock is what a process holds and a test must give back.
type stock struct{ goroutines, files int }

func takeStock() stock {
	s := stock{goroutines: runtime.NumGoroutine()}
	if entries, err := os.ReadDir("/proc/self/fd"); err == nil { // elsewhere than on Linux only goroutines count
		s.files = len(entries)
	}
	return s
}

// compare fails t if the process still holds more than it did after settle.
func (s stock) compare(t *testing.T, settle time.Duration) {
	t.Helper()
	var now stock
	for end := time.Now().Add(settle); ; {
		now = takeStock()
		// The test that asks runs in a goroutine of its own.
		if now.goroutines <= s.goroutines+1 && now.files <= s.files {
			return
		}
		if time.Now().After(end) {
			break
		}
		<-time.After(20 * time.Millisecond)
	}
	var stacks strings.Builder
	pprof.Lookup("goroutine").WriteTo(&stacks, 1)
	t.Errorf("goroutines went from %d to %d, files from %d to %d\n%s", s.goroutines, now.goroutines-1, s.files, now.files, stacks.String())
}
