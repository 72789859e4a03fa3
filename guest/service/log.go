package service

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// maxLine is the longest line that is kept whole, in bytes; longer ones are cut into several.
const maxLine = 8 << 10

// Log takes lines from all over the guest and writes them to the console and to a file for each source, from one goroutine.
// Its writers never block and never fail: when lines come faster than the console takes them, the newest are dropped and
// counted.
type Log struct {
	console io.Writer
	clock   func() time.Duration
	lines   chan line

	mu      sync.Mutex
	dir     string // "" until files can be written
	cap     int64
	dropped int
}

type line struct {
	source string
	at     time.Duration
	text   []byte
}

// NewLog makes a log that writes to console, with each line's time from clock. Nothing is written before Run.
func NewLog(console io.Writer, clock func() time.Duration) *Log {
	return &Log{console: console, clock: clock, lines: make(chan line, 1024)}
}

// KeepFiles begins to write a file SOURCE.log for each source into dir as well. A file that has grown to size bytes becomes
// SOURCE.log.1 and a new one begins.
func (l *Log) KeepFiles(dir string, size int64) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dir, l.cap = dir, size
	return nil
}

// Run writes until ctx ends, and then what is queued.
func (l *Log) Run(ctx context.Context) {
	files := ring{}
	defer files.close()
	for {
		select {
		case ln := <-l.lines:
			l.write(files, ln)
		case <-ctx.Done():
			for len(l.lines) > 0 {
				l.write(files, <-l.lines)
			}
			l.tellDropped()
			return
		}
	}
}

func (l *Log) write(files ring, ln line) {
	l.mu.Lock()
	dir, size := l.dir, l.cap
	l.mu.Unlock()
	l.tellDropped()
	fmt.Fprintf(l.console, "[%9.3f] %s: %s\n", ln.at.Seconds(), ln.source, ln.text)
	if dir != "" {
		files.write(dir, size, ln)
	}
}

func (l *Log) tellDropped() {
	l.mu.Lock()
	dropped := l.dropped
	l.dropped = 0
	l.mu.Unlock()
	if dropped > 0 {
		fmt.Fprintf(l.console, "[%9.3f] log: %d lines dropped\n", l.clock().Seconds(), dropped)
	}
}

// Writer returns a writer for one source's lines. It may be used from several goroutines; a line's end is kept for the next
// Write to complete.
func (l *Log) Writer(source string) io.Writer { return &lineWriter{log: l, source: source} }

type lineWriter struct {
	log    *Log
	source string
	mu     sync.Mutex
	rest   []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rest = append(w.rest, p...)
	for {
		i := bytes.IndexByte(w.rest, '\n')
		if i < 0 && len(w.rest) < maxLine {
			return len(p), nil
		}
		end, next := i, i+1
		if i < 0 || i > maxLine {
			end, next = maxLine, maxLine
		}
		w.log.put(line{source: w.source, at: w.log.clock(), text: bytes.Clone(w.rest[:end])})
		w.rest = append(w.rest[:0], w.rest[next:]...)
	}
}

func (l *Log) put(ln line) {
	select {
	case l.lines <- ln:
	default:
		l.mu.Lock()
		l.dropped++
		l.mu.Unlock()
	}
}

// ring holds the open file of each source and its size. Files that cannot be written are left out: the console has it all.
type ring map[string]*ringFile

type ringFile struct {
	file *os.File
	size int64
}

func (r ring) write(dir string, limit int64, ln line) {
	f := r[ln.source]
	if f == nil {
		file, err := os.Create(filepath.Join(dir, ln.source+".log"))
		if err != nil {
			return
		}
		f = &ringFile{file: file}
		r[ln.source] = f
	}
	n, err := fmt.Fprintf(f.file, "[%9.3f] %s\n", ln.at.Seconds(), ln.text)
	f.size += int64(n)
	if err == nil && f.size < limit {
		return
	}
	f.file.Close()
	_ = os.Rename(f.file.Name(), f.file.Name()+".1")
	delete(r, ln.source)
}

func (r ring) close() {
	for _, f := range r {
		f.file.Close()
	}
}
