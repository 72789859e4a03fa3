package server_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/server"
)

// configured is a machine with settings.
type configured struct {
	fake
	asked *api.Change
	fail  error
}

func (c *configured) Configure(_ context.Context, ch api.Change) (api.Configuration, error) {
	c.asked = &ch
	return api.Configuration{Machine: "default", Waiting: []string{"cpus"}}, c.fail
}

func TestSettings(t *testing.T) {
	set := &api.Change{Verb: api.ChangeSet, Key: "cpus", Values: []string{"2"}}
	for _, tc := range []struct {
		name, method, body string
		fail               error
		status             int
		answer             string
		asked              *api.Change
	}{
		{"look", "GET", "", nil, 200, `"waiting":["cpus"]`, &api.Change{}},
		{"change", "POST", `{"verb":"set","key":"cpus","values":["2"]}`, nil, 200, `"machine":"default"`, set},
		{"replace", "PUT", `{"cpus":3}`, nil, 200, `"machine":"default"`, &api.Change{Verb: api.ChangeReplace, Settings: &api.Settings{CPUs: 3}}},
		{"refused", "POST", `{"verb":"set","key":"cpus","values":["2"]}`, api.Errorf(api.CodeShare, "gone"), 400, `"code":"share-missing"`, set},
		{"needs a restart", "POST", `{"verb":"set","key":"cpus","values":["2"]}`, api.Errorf(api.CodeRestart, "swarm"), 409, `"code":"needs-restart"`, set},
		{"nonsense", "POST", `{`, nil, 400, `"code":"bad-setting"`, nil},
		{"nothing", "PUT", ``, nil, 400, `"code":"bad-setting"`, nil},
		{"too much", "POST", `{"text":"` + strings.Repeat("x", 2<<20) + `"}`, nil, 400, "too large", nil},
		{"another method", "DELETE", ``, nil, 404, `"code":"not-found"`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := &configured{fail: tc.fail}
			w := httptest.NewRecorder()
			server.Handler(m, slog.New(slog.DiscardHandler)).ServeHTTP(w, httptest.NewRequest(tc.method, "/v1/settings", strings.NewReader(tc.body)))
			if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.answer) || !json.Valid(w.Body.Bytes()) {
				t.Errorf("%d %s: want %d and %s", w.Code, w.Body, tc.status, tc.answer)
			}
			if diff := cmp.Diff(tc.asked, m.asked); diff != "" {
				t.Errorf("asked (-want +got):\n%s", diff)
			}
		})
	}
	w := httptest.NewRecorder()
	handler(&fake{}).ServeHTTP(w, httptest.NewRequest("GET", "/v1/settings", nil))
	if w.Code != 501 || !strings.Contains(w.Body.String(), `"code":"not-supported"`) {
		t.Errorf("a machine without settings: %d %s", w.Code, w.Body)
	}
}
