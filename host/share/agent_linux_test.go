package share

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/share/notify"
	"golang.org/x/sys/unix"
)

// agent plays the guest's replayer on dir, the mounted device: each stream has a thread of its own.
func agent(t testing.TB, dir string, running *sync.WaitGroup) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		host, guest := net.Pipe()
		running.Go(func() {
			runtime.LockOSThread() // for good: the thread ends with the goroutine
			defer guest.Close()
			out := json.NewEncoder(guest)
			if out.Encode(guestapi.Replayer{Thread: unix.Gettid()}) != nil {
				return
			}
			lines := bufio.NewScanner(guest)
			for lines.Scan() {
				var op guestapi.Replay
				if err := json.Unmarshal(lines.Bytes(), &op); err != nil {
					t.Error(err)
					return
				}
				var answer guestapi.Replayed
				if err := repeat(dir, op); err != nil {
					answer.Error = err.Error()
				}
				if testing.Verbose() {
					t.Logf("replay %s %s %s: %s", op.Op, op.Path, op.To, answer.Error)
				}
				if out.Encode(answer) != nil {
					return
				}
			}
		})
		return host, nil
	}
}

// repeat makes one operation, by raw system calls of this thread.
func repeat(dir string, op guestapi.Replay) error {
	path := filepath.Join(dir, string(op.Path))
	switch op.Op {
	case guestapi.ReplayCreate:
		fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, op.Mode&0o7777)
		if err == nil {
			err = unix.Close(fd)
		}
		return err
	case guestapi.ReplayMkdir:
		return unix.Mkdir(path, op.Mode&0o7777)
	case guestapi.ReplayUnlink:
		return unix.Unlink(path)
	case guestapi.ReplayRmdir:
		return unix.Rmdir(path)
	case guestapi.ReplayRename:
		return unix.Rename(path, filepath.Join(dir, string(op.To)))
	case guestapi.ReplayLink:
		if op.Mode&unix.S_IFMT == unix.S_IFLNK {
			return unix.Symlink(".", path)
		}
		return unix.Mknod(path, op.Mode, 0)
	case guestapi.ReplayModify, guestapi.ReplayAttrib:
		fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if op.Op == guestapi.ReplayModify {
			err = unix.Truncate(self(fd), op.Size)
		} else {
			err = unix.Chmod(self(fd), op.Mode&0o7777)
		}
		var x unix.Statx_t
		if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &x); err != nil {
			return err
		}
		return err
	}
	return fmt.Errorf("unknown operation %q", op.Op)
}

// watched makes a server that hears of changes and has a guest that replays them: this machine's kernel.
func watched(t testing.TB) (fixture, string) {
	t.Helper()
	w, err := notify.New()
	if err != nil {
		t.Fatal(err)
	}
	f := serve(t, Config{Watcher: w})
	t.Cleanup(func() { w.Close() })
	dir := f.mount(t)
	f.replay(t, strings.TrimSuffix(dir, ".s"))
	return f, dir
}

func (f fixture) replay(t testing.TB, mounted string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { f.Replay(ctx, agent(t, mounted, &running)) })
	t.Cleanup(func() { cancel(); running.Wait() })
	eventually(t, "streams", func() error {
		if f.replays.live.Load() == 0 {
			return os.ErrNotExist
		}
		return nil
	})
}
