package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// maxLog is the size in bytes at which a log is put aside as NAME.1, in the place of the one before.
const maxLog = 5 << 20

// logFile is a log of bounded size. A write never fails its caller: a log that cannot be written is no reason to stop.
type logFile struct {
	path string

	mu   sync.Mutex
	file *os.File
	size int64
}

func openLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	if err := l.open(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.file, l.size = f, st.Size()
	return nil
}

// Write appends p, whole or not at all.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > maxLog {
		l.rotate()
	}
	n, _ := l.file.Write(p)
	l.size += int64(n)
	return len(p), nil
}

func (l *logFile) rotate() {
	l.size = 0 // where it cannot be rotated, not at every write anew
	old := l.file
	if os.Rename(l.path, l.path+".1") == nil && l.open() == nil {
		old.Close()
	}
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}
