//go:build linux

package engine

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
)

// file is daemon.json, and what it is to hold should dockerd not start with what it holds.
type file struct {
	path string

	mu       sync.Mutex
	now      settings // what it holds
	fallback settings // nil: there is none
	fell     bool     // now was the fallback
	reason   error    // why dockerd did not start with what is the fallback now
}

// set makes s the content. fallback may be nil.
func (f *file) set(s, fallback settings) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := write(f.path, s); err != nil {
		return err
	}
	f.now, f.fallback, f.fell, f.reason = s, fallback, false, nil
	return nil
}

func (f *file) content() settings {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

// failed notes that dockerd did not start: the fallback comes into force, or what it stood in for does again, since then the
// cause was another.
func (f *file) failed(why error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fallback == nil {
		return nil
	}
	if err := write(f.path, f.fallback); err != nil {
		return err
	}
	if !f.fell {
		f.reason = why
	}
	f.now, f.fallback, f.fell = f.fallback, f.now, !f.fell
	return nil
}

// started notes that dockerd has started: what is in force stays. The error says why that is the fallback.
func (f *file) started() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fallback = nil
	if !f.fell {
		return nil
	}
	return f.reason
}

// write replaces path at once, so that a reader sees the old or the new.
func write(path string, s settings) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return replace(path, data)
}

func replace(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil { // proxies have passwords
		return err
	}
	return os.Rename(tmp, path)
}
