// Package server answers host/api for one machine: HTTP with JSON bodies on the machine's API socket, and one upgraded
// stream for shells. It knows the machine by the interface below and nothing of how it is made. Its neighbours are the
// listener of host/socket in front and host/machine behind.
package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coracle-engine/coracle/host/api"
)

// Machine is what there is to serve; host/machine's Machine is one.
type Machine interface {
	Status() api.Status
	// Watch calls f with every event so far and then with each new one, until the machine has ended, ctx does or f fails.
	Watch(ctx context.Context, f func(api.Event) error) error
	// Stop begins the end and returns at once.
	Stop(force bool)
	// DialShell opens a stream of shell frames.
	DialShell(ctx context.Context) (net.Conn, error)
}

const (
	maxBody   = 64 << 10
	headTime  = 10 * time.Second
	shellWait = 2 * time.Minute // how long a shell waits for a machine that starts
)

// New makes a server of m, to be given the API socket's listener. Its Shutdown waits for watchers, which end with the
// machine.
func New(m Machine, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: Handler(m, log), ReadHeaderTimeout: headTime,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// Handler serves m. Whoever can connect to the socket is the machine's owner, so nobody is asked for more; only what a
// browser sends for a web page is refused, should the socket ever be put behind a port.
func Handler(m Machine, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) { reply(w, m.Status()) })
	mux.HandleFunc("GET /v1/watch", func(w http.ResponseWriter, r *http.Request) { watch(w, r, m) })
	mux.HandleFunc("POST /v1/stop", func(w http.ResponseWriter, r *http.Request) {
		var req api.StopRequest
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&req)
		if err != nil && !errors.Is(err, io.EOF) {
			refuse(w, http.StatusBadRequest, api.Errorf(api.CodeConfig, "bad request body: %v", err))
			return
		}
		m.Stop(req.Force)
		w.WriteHeader(http.StatusAccepted)
	})
	settings(mux, m)
	mux.HandleFunc("POST /v1/shell", func(w http.ResponseWriter, r *http.Request) { shell(w, r, m, log) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, http.StatusNotFound, api.Errorf(api.CodeNotFound, "there is no %s %s", r.Method, r.URL.Path))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" {
			refuse(w, http.StatusForbidden, api.Errorf(api.CodePermission, "requests of web pages are refused"))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the client is gone where it fails
}

// statusOf is the HTTP status for a class of error.
func statusOf(code api.Code) int {
	switch code {
	case api.CodeNotFound:
		return http.StatusNotFound
	case api.CodeName, api.CodeConfig, api.CodePathTooLong, api.CodeShare, api.CodeEngine:
		return http.StatusBadRequest
	case api.CodeRunning, api.CodeNotRunning, api.CodePortInUse, api.CodeRestart:
		return http.StatusConflict
	case api.CodeGuestTimeout, api.CodeGuestFailed, api.CodeCrashed:
		return http.StatusServiceUnavailable
	case api.CodeNotSupported:
		return http.StatusNotImplemented
	case api.CodePermission:
		return http.StatusForbidden
	}
	return http.StatusInternalServerError
}

func refuse(w http.ResponseWriter, status int, e *api.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(e)
}

func refuseError(w http.ResponseWriter, err error) {
	var e *api.Error
	if !errors.As(err, &e) {
		e = api.Errorf(api.CodeInternal, "%v", err)
	}
	refuse(w, statusOf(e.Code), e)
}

// watch streams events as JSON lines. A client that stops reading holds up nobody but itself.
func watch(w http.ResponseWriter, r *http.Request, m Machine) {
	w.Header().Set("Content-Type", "application/jsonl")
	out := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	_ = m.Watch(r.Context(), func(e api.Event) error {
		if err := enc.Encode(e); err != nil {
			return err
		}
		return out.Flush()
	})
}

// shell joins the client, upgraded, to a stream of the guest's. The frames are theirs: they pass unread.
func shell(w http.ResponseWriter, r *http.Request, m Machine, log *slog.Logger) {
	if r.Header.Get("Upgrade") != api.UpgradeShell {
		refuse(w, http.StatusUpgradeRequired, api.Errorf(api.CodeInternal, "a shell needs the header Upgrade: %s", api.UpgradeShell))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), shellWait)
	defer cancel()
	guest, err := m.DialShell(ctx)
	if err != nil {
		refuseError(w, err)
		return
	}
	defer guest.Close()
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		refuseError(w, err)
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Time{})
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+api.UpgradeShell+"\r\n\r\n"); err != nil {
		return
	}
	log.Info("shell opened")
	join(conn, buf.Reader, guest)
	log.Info("shell closed")
}

// join copies both ways. The guest speaks last (its frame says how the process ended), so its end ends all; the client's
// end is passed on and the guest may go on.
func join(client net.Conn, fromClient *bufio.Reader, guest net.Conn) {
	var up sync.WaitGroup
	up.Go(func() {
		_, err := io.Copy(guest, fromClient)
		if c, ok := guest.(interface{ CloseWrite() error }); ok && err == nil {
			_ = c.CloseWrite()
			return
		}
		guest.Close()
	})
	_, _ = io.Copy(client, guest)
	client.Close()
	guest.Close()
	up.Wait()
}
