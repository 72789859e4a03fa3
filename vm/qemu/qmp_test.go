//go:build linux

package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm/vmtest"
)

func TestDecode(t *testing.T) {
	for _, c := range []struct {
		line string
		ok   bool
	}{
		{`{"QMP":{"version":{}}}`, true},
		{`{"id":7,"return":{}}`, true},
		{`{"id":7,"return":{"status":"running"},"extra":1}`, true},
		{`{"error":{"class":"GenericError","desc":"no"}}`, true},
		{`{"event":"STOP","timestamp":{"seconds":1}}`, true},
		{`{}`, false},
		{``, false},
		{`null`, false},
		{`[1]`, false},
		{`{"id":"x","return":{}}`, false},
		{`{"event":7}`, false},
		{"\x00", false},
	} {
		if _, err := decode([]byte(c.line)); (err == nil) != c.ok {
			t.Errorf("decode %q: %v, want ok %v", c.line, err, c.ok)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"QMP":{}}`, `{"id":7,"return":{}}`, `{"error":{"desc":"no"}}`, `{"event":"STOP","data":{"a":[]}}`, `{`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decode(line)
		if err == nil && m.QMP == nil && m.Return == nil && m.Error == nil && m.Event == "" {
			t.Errorf("%q is nothing and no error", line)
		}
		// Whatever it is, taking note of it must not fail.
		(&machine{log: vmtest.Logger(false)}).event(m.Event, m.Data)
	})
}

// talk makes a monitor whose other end is a connection of the test's.
func talk(t *testing.T) (*monitor, net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	m := newMonitor(near, func(string, json.RawMessage) {})
	t.Cleanup(func() { far.Close(); m.close() })
	return m, far
}

func TestMonitorRefuses(t *testing.T) {
	for name, said := range map[string]string{
		"two greetings": `{"QMP":{}}` + "\n" + `{"QMP":{}}` + "\n",
		"a long line":   strings.Repeat("x", maxMessage+1),
		"the end":       "",
	} {
		t.Run(name, func(t *testing.T) {
			m, far := talk(t)
			go func() {
				far.Write([]byte(said))
				far.Close()
			}()
			select {
			case <-m.done:
			case <-time.After(5 * time.Second):
				t.Fatal("still reads")
			}
			if err := m.execute(t.Context(), "cont", nil); err == nil {
				t.Error("execute on a dead monitor: no error")
			}
		})
	}
}

func TestMonitorIsBounded(t *testing.T) {
	m, far := talk(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.handshake(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("handshake with a silent QEMU: %v", err)
	}
	go far.Read(make([]byte, 1000)) // takes the command and says nothing
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := m.execute(ctx, "stop", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("execute on a silent QEMU: %v", err)
	}
	far.Write([]byte(`{"id":1,"return":{}}` + "\n")) // too late: nobody waits
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting) != 0 {
		t.Errorf("%d callers are still noted", len(m.waiting))
	}
}
