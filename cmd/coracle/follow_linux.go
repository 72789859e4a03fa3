package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// watchFile calls changed after each change of the file at path, which need not exist yet, until ctx ends or changed
// fails. It watches the directory (inotify(7)), so that it sees a file that takes the name, too.
func watchFile(ctx context.Context, path string, changed func() error) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("follow %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	if _, err := unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		return fmt.Errorf("follow %s: %w", path, err)
	}
	defer context.AfterFunc(ctx, func() { f.Close() })()
	buf := make([]byte, 64<<10)
	for {
		if err := changed(); err != nil {
			return err
		}
		// What the event is about does not matter: few files are written in a machine's directory, and looking is cheap.
		if _, err := f.Read(buf); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("follow %s: %w", path, err)
		}
	}
}
