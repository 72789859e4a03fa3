package dockerproxy

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// moves is a Policy that finds everything below /in below /out, and has nothing else.
type moves struct{}

func (moves) Source(p string) (string, error) {
	if below(p, "/in") {
		return under("/out", p, "/in"), nil
	}
	return "", errors.New(p + " refused")
}

// TestSources gives a path in every way in which the Engine API takes one. From CVE-2026-6406, whose proxy knew Binds alone.
func TestSources(t *testing.T) {
	const container, volume, service, update = "/containers/create", "/volumes/create", "/services/create", "/services/x/update"
	mounts := func(m string) string { return `{"HostConfig":{"Mounts":[` + m + `]}}` }
	task := func(m string) string { return `{"TaskTemplate":{"ContainerSpec":{"Mounts":[` + m + `]}}}` }
	const bind = `{"Type":"bind","Source":"%s","Target":"/x"}`
	const driver = `{"Type":"volume","Target":"/x","VolumeOptions":{"DriverConfig":{"Name":"local","Options":{"type":"none","o":"bind","device":"%s"}}}}`
	both := []struct{ name, path, body string }{ // %s is the path
		{"binds", container, `{"HostConfig":{"Binds":["v:/y","%s:/x"]}}`},
		{"binds with a mode", container, `{"HostConfig":{"Binds":["%s:/x:ro,rslave,z"]}}`},
		{"mount", container, mounts(bind)},
		{"second mount", container, mounts(`{"Type":"tmpfs","Target":"/t"},` + bind)},
		{"mount with options", container, mounts(`{"BindOptions":{"Propagation":"rshared","CreateMountpoint":true},"Source":"%s","Type":"bind","Target":"/x"}`)},
		{"volume with options", container, mounts(driver)},
		{"volume of the default driver", container, mounts(strings.Replace(driver, `"Name":"local",`, "", 1))},
		{"volume", volume, `{"Name":"v","Driver":"local","DriverOpts":{"type":"none","o":"bind","device":"%s"}}`},
		{"volume without a driver", volume, `{"DriverOpts":{"device":"%s","o":"bind","type":"none"}}`},
		{"volume bind among options", volume, `{"DriverOpts":{"device":"%s","o":"ro,nosuid,bind","type":"none"}}`},
		{"volume rbind", volume, `{"DriverOpts":{"device":"%s","o":"rbind","type":""}}`},
		{"volume of another type", volume, `{"DriverOpts":{"device":"%s","o":"bind,rw","type":"ext4"}}`},
		{"service", service, task(bind)},
		{"service's volume", service, task(driver)},
		{"service's update", update, task(bind)},
		{"other case", container, `{"hostconfig":{"BINDS":["%s:/x"]}}`},
		{"letters that fold", container, `{"Ho` + "\u017f" + `tConfig":{"Bind` + "\u017f" + `":["%s:/x"]}}`},
		{"escaped key", container, `{"\u0048ostConfig":{"\u0042inds":["%s:/x"]}}`},
		{"other case of the mount", container, mounts(`{"TYPE":"bind","SOURCE":"%s","target":"/x"}`)},
	}
	for _, test := range both {
		t.Run(test.name, func(t *testing.T) {
			check := checkerFor(test.path)
			for _, spelling := range []string{"/in/a", `\/in\/a`, `\u002fin/a`} {
				got, err := rewrite(check, moves{}, fmt.Appendf(nil, test.body, spelling))
				if err != nil || !strings.Contains(string(got), `"/out/a`) || strings.Contains(string(got), "/in") {
					t.Errorf("shared, as %s: body is %s, error %v", spelling, got, err)
				}
			}
			got, err := rewrite(check, moves{}, fmt.Appendf(nil, test.body, "/evil"))
			if why := (*refusal)(nil); !errors.As(err, &why) || why.status != 400 || why.message != "/evil refused" {
				t.Errorf("not shared: body is %s, error %v", got, err)
			}
		})
	}
}

func checkerFor(path string) checker {
	return checkerOf(&http.Request{Method: "POST", URL: &url.URL{Path: path}})
}

// TestPass has bodies that name no path of the host reach the engine as they are, but for white space between tokens.
func TestPass(t *testing.T) {
	for _, test := range []struct{ name, path, body string }{
		{"named volume", "/containers/create", `{"HostConfig":{"Binds":["data:/x","a-b_c.d:/y:ro","/anonymous"]}}`},
		{"relative", "/containers/create", `{"HostConfig":{"Binds":["./x:/x","~/x:/x","","C:\\x:/x",":/x"],"Mounts":[{"Type":"bind","Source":"x"},{"Type":"bind","Source":""}]}}`},
		{"mount of a volume", "/containers/create", `{"HostConfig":{"Mounts":[{"Type":"volume","Source":"data","VolumeOptions":{"Subpath":"/evil"}}]}}`},
		{"mount of an image", "/containers/create", `{"HostConfig":{"Mounts":[{"Type":"image","Source":"alpine"},{"Type":"tmpfs"},null,7,"x"]}}`},
		{"null", "/containers/create", `{"HostConfig":null}`},
		{"null lists", "/containers/create", `{"HostConfig":{"Binds":null,"Mounts":null}}`},
		{"wrong types", "/containers/create", `{"HostConfig":{"Binds":"/evil:/x","Mounts":{"Type":"bind","Source":"/evil"}}}`},
		{"no object", "/containers/create", `["/evil:/x"]`},
		{"unknown fields", "/containers/create", `{"Später":{"a":[1e400,-0,1.10,{"Binds":["/evil:/x"]}]},"HostConfig":{"Neu":"<&>\u2028","Binds":["/in:/x"]}}`},
		{"labels that differ in case", "/containers/create", `{"Labels":{"A":"1","a":"2"}}`},
		{"nfs volume", "/volumes/create", `{"DriverOpts":{"type":"nfs","o":"addr=1.2.3.4,rw","device":":/evil"}}`},
		{"tmpfs volume", "/volumes/create", `{"DriverOpts":{"type":"tmpfs","device":"tmpfs","o":"size=1g"}}`},
		{"disk", "/volumes/create", `{"DriverOpts":{"type":"ext4","device":"/dev/vdc"}}`},
		{"plugin's volume", "/volumes/create", `{"Driver":"sshfs","DriverOpts":{"o":"bind","device":"/evil"}}`},
		{"service", "/services/create", `{"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"x","Mounts":[]}}}`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := rewrite(checkerFor(test.path), moves{}, []byte(test.body))
			if want := strings.Replace(test.body, `"/in:/x"`, `"/out:/x"`, 1); err != nil || string(got) != want {
				t.Errorf("body is %s, error %v: want %s", got, err, want)
			}
		})
	}
}

// TestBadBodies are refused: two parsers could take them for two things.
func TestBadBodies(t *testing.T) {
	for _, test := range []struct{ name, body, want string }{
		{"nothing", "", "invalid JSON"},
		{"cut off", `{"HostConfig":{"Binds":["/in:/x"]`, "invalid JSON"},
		{"more after it", `{} {"HostConfig":{"Binds":["/evil:/x"]}}`, "invalid JSON"},
		{"byte order mark", "\ufeff{}", "invalid JSON"},
		{"comma at the end", `{"a":1,}`, "invalid JSON"},
		{"not a number", `{"a":NaN}`, "invalid JSON"},
		{"deep", strings.Repeat("[", 20000) + strings.Repeat("]", 20000), "invalid JSON"},
		{"key twice", `{"HostConfig":{"Binds":["/in:/x"]},"HostConfig":{"Binds":["/evil:/x"]}}`, `key "HostConfig" occurs twice`},
		{"key twice, deep in something unknown", `{"X":[{"a":1,"b":{},"a":2}]}`, `key "a" occurs twice`},
		{"key twice, once escaped", `{"a":1,"\u0061":2}`, `key "a" occurs twice`},
		{"field twice in other letters", `{"HostConfig":{"Binds":[]},"hostconfig":{"Binds":["/evil:/x"]}}`, "field HostConfig occurs twice"},
		{"list twice", `{"HostConfig":{"Binds":[],"binds":["/evil:/x"]}}`, "field Binds occurs twice"},
		{"mounts twice", `{"HostConfig":{"Mounts":[],"MountS":[]}}`, "field Mounts occurs twice"},
		{"type twice", `{"HostConfig":{"Mounts":[{"Type":"tmpfs","type":"bind","Source":"/evil"}]}}`, "field Type occurs twice"},
		{"source twice", `{"HostConfig":{"Mounts":[{"Type":"bind","source":"/evil","Source":"/in"}]}}`, "field Source occurs twice"},
		{"zero byte", `{"HostConfig":{"Binds":["/in/\u0000:/x"]}}`, "has a zero byte"},
		{"too large", `{"a":"` + strings.Repeat("x", maxBody) + `"}`, "larger than 16 MiB"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := rewrite(checkContainer, moves{}, []byte(test.body))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("body is %.200s, error %v: want %q", got, err, test.want)
			}
		})
	}
	if _, err := rewrite(checkContainer, colons{}, []byte(`{"HostConfig":{"Binds":["/in:/x"]}}`)); err == nil || !strings.Contains(err.Error(), "--mount") {
		t.Errorf("a colon in what a path becomes: error %v", err)
	}
}

type colons struct{}

func (colons) Source(string) (string, error) { return "/a:b", nil }

// TestRoutes are the requests that are read whole.
func TestRoutes(t *testing.T) {
	for _, test := range []struct {
		method, path string
		checked      bool
		hijacks      bool
	}{
		{"POST", "/containers/create", true, false}, {"POST", "/v1.47/containers/create/", true, false}, {"POST", "//v9/./volumes/create", true, false},
		{"GET", "/containers/create", false, false}, {"POST", "/v1.47/v1.47/containers/create", false, false}, {"POST", "/vx/containers/create", false, false},
		{"POST", "/containers/create/update", false, false}, {"POST", "/services/x/update", true, false}, {"POST", "/services/x/y/update", false, false},
		{"POST", "/volumes/prune", false, false}, {"POST", "/build", false, false}, {"POST", "*", false, false},
		{"POST", "/containers/a/b/attach", false, true}, {"GET", "/v1.24/containers/a/attach/ws", false, true}, {"POST", "/exec/x/start", false, true},
		{"POST", "/containers/x/start", false, false}, {"POST", "/session", false, true}, {"POST", "/v1.47/grpc", false, true},
	} {
		t.Run(test.method+" "+test.path, func(t *testing.T) {
			r := &http.Request{Method: test.method, URL: &url.URL{Path: test.path}}
			if got := checkerOf(r) != nil; got != test.checked {
				t.Errorf("checked is %v", got)
			}
			if got := mayHijack(r); got != test.hijacks {
				t.Errorf("may hijack is %v", got)
			}
		})
	}
}
