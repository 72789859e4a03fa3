package share

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestLeavings has the guest take away more files than may wait to be freed, by removal and by a rename over each, and expects
// none of them to be held in the end.
func TestLeavings(t *testing.T) {
	f := serve(t, Config{})
	dir := f.mount(t)
	for i := range maxLeavings + 10 {
		gone, other := filepath.Join(dir, "gone"+strconv.Itoa(i)), filepath.Join(dir, "other")
		for _, name := range []string{gone, other} {
			if err := os.WriteFile(name, make([]byte, 8192), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Rename(gone, other); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(other); err != nil {
			t.Fatal(err)
		}
	}
	held := deletedIn(t, f.root)
	for end := time.Now().Add(10 * time.Second); len(held) > 0 && time.Now().Before(end); held = deletedIn(t, f.root) {
		time.Sleep(10 * time.Millisecond)
	}
	if len(held) > 0 {
		t.Errorf("still held: %q", held)
	}
}

// deletedIn lists the files of this process that were in dir and have no name any more.
func deletedIn(t *testing.T, dir string) (list []string) {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); strings.HasPrefix(to, dir) && strings.HasSuffix(to, "(deleted)") {
			list = append(list, to)
		}
	}
	return list
}
