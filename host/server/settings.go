package server

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/coracle-engine/coracle/host/api"
)

// Configurer is a Machine whose settings can be asked for and changed.
type Configurer interface {
	// Configure makes one change, keeps it, and follows it as far as a running machine can; the empty Change changes nothing.
	// Where it fails nothing has changed. It is called by several goroutines.
	Configure(ctx context.Context, ch api.Change) (api.Configuration, error)
}

// maxSettings bounds a settings file, and with it a Change, in bytes.
const maxSettings = 1 << 20

// settings answers for m: the whole, a new whole, or one change.
func settings(mux *http.ServeMux, m Machine) {
	answer := func(w http.ResponseWriter, r *http.Request, ch api.Change) {
		c, ok := m.(Configurer)
		if !ok {
			refuseError(w, api.Errorf(api.CodeNotSupported, "this machine has no settings"))
			return
		}
		out, err := c.Configure(r.Context(), ch)
		if err != nil {
			refuseError(w, err)
			return
		}
		reply(w, out)
	}
	decode := func(w http.ResponseWriter, r *http.Request, v any) bool {
		err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxSettings)).Decode(v)
		if err != nil {
			refuse(w, http.StatusBadRequest, api.Errorf(api.CodeConfig, "bad request body: %v", err))
		}
		return err == nil
	}
	mux.HandleFunc("GET /v1/settings", func(w http.ResponseWriter, r *http.Request) { answer(w, r, api.Change{}) })
	mux.HandleFunc("PUT /v1/settings", func(w http.ResponseWriter, r *http.Request) {
		var s api.Settings
		if decode(w, r, &s) {
			answer(w, r, api.Change{Verb: api.ChangeReplace, Settings: &s})
		}
	})
	mux.HandleFunc("POST /v1/settings", func(w http.ResponseWriter, r *http.Request) {
		var ch api.Change
		if decode(w, r, &ch) {
			answer(w, r, ch)
		}
	})
}
