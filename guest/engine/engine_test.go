//go:build linux

package engine

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"
)

func TestPing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	status := http.StatusOK
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/_ping" {
			t.Errorf("asked for %s %s", r.Method, r.URL)
		}
		w.WriteHeader(status)
	})}
	go s.Serve(l)
	defer s.Close()
	if err := ping(t.Context(), path); err != nil {
		t.Error(err)
	}
	status = http.StatusInternalServerError
	if err := ping(t.Context(), path); err == nil {
		t.Error("an engine that answers with an error counts as up")
	}
	if err := ping(t.Context(), path+"x"); err == nil {
		t.Error("an engine that is not there counts as up")
	}
}

// TestReloaded asks a fake API for the event, whose clock may have been set back.
func TestReloaded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	body := ""
	var since, until float64
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := fmt.Sscanf(r.FormValue("since")+" "+r.FormValue("until"), "%g %g", &since, &until)
		if err != nil || r.FormValue("filters") != `{"type":{"daemon":true},"event":{"reload":true}}` {
			t.Errorf("asked for %s", r.URL)
		}
		fmt.Fprint(w, body)
	})}
	go s.Serve(l)
	defer s.Close()
	from := time.Now()
	if got, err := reloaded(t.Context(), path, from); got || err != nil {
		t.Errorf("no event: %v, %v", got, err)
	}
	body = `{"Type":"daemon"}`
	if got, err := reloaded(t.Context(), path, from); !got || err != nil {
		t.Errorf("an event: %v, %v", got, err)
	}
	if want := float64(from.Unix()); since < want || since > until {
		t.Errorf("asked for %f to %f: want from %f", since, until, want)
	}
}
