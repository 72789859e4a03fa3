package api_test

import (
	"testing"

	"github.com/coracle-engine/coracle/host/api"
)

func TestParseShare(t *testing.T) {
	for text, want := range map[string]api.Share{
		"/a": {Path: "/a"}, "/a:rw": {Path: "/a"}, "/a:ro": {Path: "/a", ReadOnly: true}, "/a:ro:secrets": {Path: "/a", ReadOnly: true, Secrets: true},
		"/a:secrets": {Path: "/a", Secrets: true}, "/a:ro:rw": {Path: "/a:ro"}, "/a:b": {Path: "/a:b"}, `C:\a:ro`: {Path: `C:\a`, ReadOnly: true},
	} {
		if got, err := api.ParseShare(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", ":ro", ":secrets", ":ro:secrets"} {
		if got, err := api.ParseShare(text); err == nil {
			t.Errorf("%q was taken for %+v", text, got)
		}
	}
}

func FuzzParseShare(f *testing.F) {
	f.Add("/a:ro:secrets")
	f.Add("/a:secrets:rw:ro")
	f.Fuzz(func(t *testing.T, text string) {
		sh, err := api.ParseShare(text)
		if err != nil {
			return
		}
		if again, err := api.ParseShare(sh.String()); err != nil || again != sh {
			t.Errorf("%q is %+v, written %q, read %+v, %v", text, sh, sh.String(), again, err)
		}
	})
}
