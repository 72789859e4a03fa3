//go:build linux

package share

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"golang.org/x/sys/unix"
)

// maxReplay is the longest line of the host's that is read, in bytes: two paths of 4 KiB, in base64, fit several times.
const maxReplay = 64 << 10

// replayer repeats the host's changes beneath one directory. All of its calls are raw system calls of the calling thread.
type replayer struct {
	root int // O_PATH
}

// replay serves one stream with a thread of its own until it ends, ctx ends or the host says something that makes no sense.
// It closes conn, and only then gives the thread back, so that no request of another is taken for a replay.
func replay(ctx context.Context, conn net.Conn, dir string) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(root)
	out := json.NewEncoder(conn)
	if err := out.Encode(api.Replayer{Thread: unix.Gettid()}); err != nil {
		return fmt.Errorf("introduce replayer: %w", err)
	}
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, maxReplay)
	for lines.Scan() {
		var op api.Replay
		if err := json.Unmarshal(lines.Bytes(), &op); err != nil {
			return fmt.Errorf("parse replay: %w", err)
		}
		var answer api.Replayed
		if err := (replayer{root}).do(op); err != nil {
			answer.Error = err.Error()
		}
		if err := out.Encode(answer); err != nil {
			return fmt.Errorf("answer replay: %w", err)
		}
	}
	if err := lines.Err(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read replay: %w", err)
	}
	return nil
}

// do makes one operation.
func (r replayer) do(op api.Replay) error {
	parent, name, err := r.parent(op.Path)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	switch op.Op {
	case api.ReplayCreate:
		// O_EXCL: what is there already is not opened, be it a pipe that blocks.
		const flags = unix.O_CREAT | unix.O_EXCL | unix.O_WRONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY
		var fd int
		if fd, err = unix.Openat(parent, name, flags, op.Mode&0o7777); err == nil {
			err = unix.Close(fd)
		}
	case api.ReplayMkdir:
		err = unix.Mkdirat(parent, name, op.Mode&0o7777)
	case api.ReplayUnlink:
		err = unix.Unlinkat(parent, name, 0)
	case api.ReplayRmdir:
		err = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR)
	case api.ReplayModify, api.ReplayAttrib:
		err = change(parent, name, op)
	case api.ReplayRename:
		err = r.rename(parent, name, op.To)
	case api.ReplayLink:
		if op.Mode&unix.S_IFMT == unix.S_IFLNK {
			err = unix.Symlinkat(".", parent, name) // the server knows where it leads
		} else {
			err = unix.Mknodat(parent, name, op.Mode, 0)
		}
	default:
		return fmt.Errorf("unknown operation %q", op.Op)
	}
	if err != nil {
		return fmt.Errorf("%s %q: %w", op.Op, op.Path, err)
	}
	return nil
}

func (r replayer) rename(parent int, name string, path []byte) error {
	to, toName, err := r.parent(path)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	return unix.Renameat2(parent, name, to, toName, 0)
}

// change raises the event of a changed file by an attribute that is set to what it is said to be, and has the kernel fetch the
// attributes past its cache, whatever came of the first: so it learns the truth and drops the pages that are old. The file is
// never opened, only named: opening a pipe could block, and would be one more event.
func change(parent int, name string, op api.Replay) error {
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	self := fmt.Sprintf("/proc/self/fd/%d", fd) // leads to what fd is, even a symlink, and nowhere else
	if op.Op == api.ReplayModify {
		err = unix.Truncate(self, op.Size)
	} else {
		err = unix.Chmod(self, op.Mode&0o7777)
	}
	var st unix.Statx_t
	return errors.Join(err, unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &st))
}

// parent opens the directory of path's last name. No element may be a symlink, and none leads out.
func (r replayer) parent(path []byte) (fd int, name string, err error) {
	dir, last := ".", path
	if i := bytes.LastIndexByte(path, '/'); i >= 0 {
		dir, last = string(path[:i]), path[i+1:]
	}
	name = string(last)
	if name == "" || name == "." || name == ".." || dir == "" || bytes.IndexByte(path, 0) >= 0 {
		return -1, "", fmt.Errorf("replay of the senseless path %q", path)
	}
	fd, err = unix.Openat2(r.root, dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, "", fmt.Errorf("open the directory of %q: %w", path, err)
	}
	return fd, name, nil
}
