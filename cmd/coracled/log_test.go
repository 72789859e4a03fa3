package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestLog writes three logs' worth of lines from many sides: each line is whole, the newest are there, the size is bounded.
func TestLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	writeFile(t, path, "from before\n")
	l, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	const writers, lines, width = 4, 4000, 1000
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() {
			for n := range lines {
				line := fmt.Sprintf("%d %d ", i, n)
				line += strings.Repeat("x", width-len(line)-1) + "\n"
				if n, err := l.Write([]byte(line)); n != len(line) || err != nil {
					t.Errorf("Write returned %d, %v", n, err)
				}
			}
		})
	}
	all.Wait()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	next := [writers]int{}
	for _, name := range []string{path + ".1", path} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > maxLog+width {
			t.Errorf("%s has %d bytes", name, len(data))
		}
		for line := range bytes.Lines(data) {
			var i, n int
			if _, err := fmt.Sscanf(string(line), "%d %d", &i, &n); err != nil || len(line) != width || next[i] != 0 && n != next[i] {
				t.Fatalf("%s has %.20q… of %d bytes, after %d", name, line, len(line), next[i])
			}
			next[i] = n + 1
		}
	}
	for _, n := range next {
		if n != lines && n != 0 { // one that was done early is forgotten
			t.Errorf("the last lines are %v: want %d", next, lines)
		}
	}
	if next == [writers]int{} {
		t.Error("the log is empty")
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 2 {
		t.Errorf("there are %v", entries)
	}
}

// TestLogContinues has a second process add to the first one's log.
func TestLogContinues(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for _, line := range []string{"one\n", "two\n"} {
		l, err := openLog(path)
		if err != nil {
			t.Fatal(err)
		}
		l.Write([]byte(line))
		l.Close()
	}
	if data, err := os.ReadFile(path); string(data) != "one\ntwo\n" || err != nil {
		t.Errorf("log is %q, error %v", data, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, error %v", st.Mode(), err)
	}
	if _, err := openLog(filepath.Join(path, "below-a-file")); err == nil || !strings.HasPrefix(err.Error(), "open log: ") {
		t.Errorf("error is %v", err)
	}
}

// TestLogStays keeps a log where it cannot be put aside.
func TestLogStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	writeFile(t, filepath.Join(path+".1", "in the way"), "")
	l.size = maxLog + 1
	if n, err := l.Write([]byte("line\n")); n != 5 || err != nil {
		t.Errorf("Write returned %d, %v", n, err)
	}
	if data, err := os.ReadFile(path); string(data) != "line\n" || err != nil {
		t.Errorf("log is %q, error %v", data, err)
	}
}
