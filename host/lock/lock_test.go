package lock_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/host/lock"
)

const patience = 10 * time.Second

func take(t *testing.T, path string, wait time.Duration) *os.File {
	t.Helper()
	f, err := lock.Take(t.Context(), path, wait)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestTake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first := take(t, path, 0)
	for _, wait := range []time.Duration{0, 20 * time.Millisecond} {
		if _, err := lock.Take(t.Context(), path, wait); !errors.Is(err, lock.ErrHeld) {
			t.Errorf("taken twice: %v", err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lock.Take(ended, path, patience); !errors.Is(err, lock.ErrHeld) {
		t.Errorf("after the end of its context: %v", err)
	}
	first.Close()
	take(t, path, patience) // those who gave up may have it for a moment
}

// TestWait takes a lock at the moment when its owner lets go.
func TestWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first := take(t, path, 0)
	got := make(chan error, 1)
	go func() {
		f, err := lock.Take(context.Background(), path, patience)
		if err == nil {
			f.Close()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	first.Close()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// TestChild: a child that inherited the file keeps the lock when its parent is gone.
func TestChild(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first := take(t, path, 0)
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Skip(err)
	}
	cmd.ExtraFiles = []*os.File{first}
	if err := cmd.Start(); err != nil {
		t.Skipf("no program to inherit a file: %v", err)
	}
	first.Close()
	if _, err := lock.Take(t.Context(), path, 0); !errors.Is(err, lock.ErrHeld) {
		t.Errorf("the child does not hold the lock: %v", err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	take(t, path, patience)
}

// TestRemoved: who waited for the lock of a machine that was deleted takes that of the new one, not one that nobody sees.
func TestRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first := take(t, path, 0)
	got := make(chan *os.File, 1)
	go func() {
		f, err := lock.Take(context.Background(), path, patience)
		if err != nil {
			t.Error(err)
		}
		got <- f
	}()
	time.Sleep(50 * time.Millisecond) // it waits by now; if not, the test has less to show
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	first.Close()
	f := <-got
	defer f.Close()
	if _, err := lock.Take(t.Context(), path, 0); !errors.Is(err, lock.ErrHeld) {
		t.Errorf("two own the machine: %v", err)
	}
}

func TestOddPath(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Skip(err)
	}
	for _, path := range []string{dir, link, filepath.Join(dir, "no", "lock")} {
		if f, err := lock.Take(t.Context(), path, 0); err == nil || errors.Is(err, lock.ErrHeld) {
			t.Errorf("%s: %v, %v", path, f, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "elsewhere")); err == nil {
		t.Error("made a file through a link")
	}
}
