package api_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/host/api"
)

// TestConfigure asks a machine that runs by its socket, and the host program about another one.
func TestConfigure(t *testing.T) {
	home := newHome(t)
	ch := api.Change{Verb: api.ChangeAdd, Key: "shares", Values: []string{"/work"}}
	fake(t, `{"machine":"{args} {home}","running":false}`)
	out, err := api.Configure(t.Context(), home, "work", ch)
	if err != nil || out.Machine != "config -- work "+home {
		t.Errorf("%+v, %v", out, err)
	}

	var asked api.Change
	m := place(t, home, "default")
	now := api.Running
	process(t, m, map[string]http.HandlerFunc{
		"GET /v1/status": func(w http.ResponseWriter, r *http.Request) { says(api.Status{State: now})(w, r) },
		"POST /v1/settings": func(w http.ResponseWriter, r *http.Request) {
			if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
				t.Error(err)
			}
			says(api.Configuration{Machine: "default", Running: true})(w, r)
		},
		"GET /v1/settings": says(api.Configuration{Machine: "whole"}),
		"PUT /v1/settings": func(w http.ResponseWriter, r *http.Request) {
			var s api.Settings
			if err := json.NewDecoder(r.Body).Decode(&s); err != nil || s.CPUs != 3 {
				t.Errorf("%+v, %v", s, err)
			}
			says(api.Configuration{Changed: []string{"cpus"}})(w, r)
		},
	})
	for _, now = range []api.State{api.Starting, api.Running} {
		if out, err = api.Configure(t.Context(), home, "default", ch); err != nil || !out.Running {
			t.Errorf("%s: %+v, %v", now, out, err)
		}
		if diff := cmp.Diff(ch, asked); diff != "" {
			t.Errorf("asked (-want +got):\n%s", diff)
		}
	}
	now = api.Stopping // its file is its host program's again
	if out, err = api.Configure(t.Context(), home, "default", ch); err != nil || !strings.HasPrefix(out.Machine, "config -- default") {
		t.Errorf("%+v, %v", out, err)
	}

	c := api.New(m)
	if out, err = c.Settings(t.Context()); err != nil || out.Machine != "whole" {
		t.Errorf("%+v, %v", out, err)
	}
	if out, err = c.Apply(t.Context(), api.Settings{CPUs: 3}); err != nil || len(out.Changed) != 1 {
		t.Errorf("%+v, %v", out, err)
	}
}

// TestConfigureFails: errors come through, and a machine that starts or ends meanwhile is asked in the other way, once.
func TestConfigureFails(t *testing.T) {
	home := newHome(t)
	if _, err := api.Configure(t.Context(), home, "../x", api.Change{}); api.CodeOf(err) != api.CodeName {
		t.Errorf("odd name: %v", err)
	}
	t.Setenv("FAKE_STATUS", "1")
	fake(t, `{"code":"bad-setting","message":"m","hint":"h"}`)
	if _, err := api.Configure(t.Context(), home, "x", api.Change{}); api.CodeOf(err) != api.CodeConfig {
		t.Errorf("refused: %v", err)
	}
	fake(t, `{"code":"already-running","message":"m"}`)
	m := place(t, home, "default")
	var asked atomic.Int32
	process(t, m, map[string]http.HandlerFunc{
		"GET /v1/status": func(w http.ResponseWriter, r *http.Request) {
			st := api.Status{State: api.Stopping}
			if asked.Add(1) > 1 {
				st.State = api.Running
			}
			says(st)(w, r)
		},
		"POST /v1/settings": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusBadRequest)
			json.NewEncoder(w).Encode(api.Errorf(api.CodeShare, "gone"))
		},
	})
	if _, err := api.Configure(t.Context(), home, "default", api.Change{}); api.CodeOf(err) != api.CodeShare || asked.Load() != 2 {
		t.Errorf("started meanwhile: %v, asked %d times", err, asked.Load())
	}
	fake(t, "nonsense")
	t.Setenv("FAKE_STATUS", "")
	if _, err := api.Configure(t.Context(), home, "other", api.Change{}); err == nil || api.CodeOf(err) != api.CodeInternal {
		t.Errorf("nonsense: %v", err)
	}
}
