package vsock

import (
	"io"
	"testing"
)

// Who closes a stream before both sides have ended their directions breaks it off, and the other side can tell.
func TestReset(t *testing.T) {
	hostEnds := func(t *testing.T, c interface{ CloseWrite() error }, s *socket) {
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Fatalf("guest read %d, %v", n, err)
		}
	}
	for _, tt := range []struct {
		name  string
		host  bool          // the host has ended its direction before
		guest func(*socket) // what the guest does
		want  bool
	}{
		{"guest closes", false, func(s *socket) { s.Close() }, true},
		{"guest closes after host's end", true, func(s *socket) { s.Close() }, true},
		{"guest ends, then closes", false, func(s *socket) { s.CloseWrite(); s.Close() }, true},
		{"both end", true, func(s *socket) { s.CloseWrite() }, false},
		{"both end, guest closes", true, func(s *socket) { s.CloseWrite(); s.Close() }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newDevice(t)
			g := boot(t, d)
			sockets := make(chan *socket, 1)
			g.serve(echoPort, func(s *socket) { sockets <- s })
			c := dial(t, d, echoPort)
			s := <-sockets
			if tt.host {
				hostEnds(t, c, s)
			}
			tt.guest(s)
			if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Fatalf("host read %d, %v", n, err)
			}
			if tt.want {
				waitFor(t, "the reset to be seen", c.Reset)
			} else if c.Close(); c.Reset() {
				t.Error("an orderly end looks like a reset")
			}
		})
	}
	t.Run("host's close after both ends says nothing more", func(t *testing.T) {
		d := newDevice(t)
		g := boot(t, d)
		sockets := make(chan *socket, 1)
		g.serve(echoPort, func(s *socket) { sockets <- s })
		c := dial(t, d, echoPort)
		s := <-sockets
		hostEnds(t, c, s)
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadAll(c); err != nil {
			t.Fatal(err)
		}
		c.Close()
		s.g.mu.Lock()
		if s.peer != shutSend || s.err != nil {
			t.Errorf("guest was told %d, %v after the end", s.peer, s.err)
		}
		s.g.mu.Unlock()
		s.Close()
		waitFor(t, "the stream to go", func() bool { return streams(d) == 0 })
	})
}
