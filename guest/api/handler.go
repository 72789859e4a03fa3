package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"
)

// ErrRestart is the class of Apply's errors about a Spec that is valid, and that a running guest cannot take without losing
// containers: it comes into force when the machine is started anew. It survives the wire.
var ErrRestart = errors.New("this needs a restart of the machine")

// Agent is what Handler serves: the guest's side of Client.
type Agent interface {
	Hello() Hello
	Apply(ctx context.Context, spec Spec) error
	// Watch calls f with all events so far and then with each new one, until ctx ends or f fails.
	Watch(ctx context.Context, f func(Event) error) error
	SetTime(now time.Time) error
	// Shutdown begins the orderly end and returns at once.
	Shutdown()
}

// Handler serves a and p over HTTP. It trusts its callers: the listener beneath it has checked their greeting.
func Handler(a Agent, p Publisher) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/published", func(w http.ResponseWriter, r *http.Request) {
		var list []Publication
		if decode(w, r, &list) {
			p.Published(list)
			reply(w, nil, nil)
		}
	})
	mux.HandleFunc("GET /v1/hello", func(w http.ResponseWriter, _ *http.Request) { reply(w, a.Hello(), nil) })
	mux.HandleFunc("PUT /v1/spec", func(w http.ResponseWriter, r *http.Request) {
		var spec Spec
		if decode(w, r, &spec) {
			reply(w, nil, a.Apply(r.Context(), spec))
		}
	})
	mux.HandleFunc("PUT /v1/time", func(w http.ResponseWriter, r *http.Request) {
		var now time.Time
		if decode(w, r, &now) {
			reply(w, nil, a.SetTime(now))
		}
	})
	mux.HandleFunc("POST /v1/shutdown", func(w http.ResponseWriter, _ *http.Request) {
		a.Shutdown()
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("GET /v1/watch", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/jsonl")
		out := http.NewResponseController(w)
		enc := json.NewEncoder(w)
		_ = a.Watch(r.Context(), func(e Event) error {
			if err := enc.Encode(e); err != nil {
				return err
			}
			return out.Flush()
		})
	})
	return mux
}

// maxBody bounds what one request may say, in bytes.
const maxBody = 1 << 20

func decode(w http.ResponseWriter, r *http.Request, v any) bool {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(v); err != nil {
		http.Error(w, "bad request body: "+err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func reply(w http.ResponseWriter, v any, err error) {
	switch {
	case errors.Is(err, ErrRestart):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	case v == nil:
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
}
