package paths_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-engine/coracle/host/paths"
)

func TestHome(t *testing.T) {
	for _, tc := range []struct {
		name, goos string
		env        map[string]string
		want       string
	}{
		{"linux", "linux", map[string]string{"HOME": "/home/a"}, "/home/a/.coracle"},
		{"macOS", "darwin", map[string]string{"HOME": "/Users/a"}, "/Users/a/.coracle"},
		{"windows", "windows", map[string]string{"LOCALAPPDATA": `C:\Users\a\AppData\Local`, "HOME": "/x"}, `C:\Users\a\AppData\Local\Coracle`},
		{"chosen", "linux", map[string]string{"HOME": "/home/a", "CORACLE_HOME": "/x"}, "/x"},
		{"chosen on windows", "windows", map[string]string{"CORACLE_HOME": `D:\x`}, `D:\x`},
		{"chosen on a server", "windows", map[string]string{"CORACLE_HOME": `\\server\x`}, `\\server\x`},
		{"relative", "linux", map[string]string{"CORACLE_HOME": "x"}, ""},
		{"relative on windows", "windows", map[string]string{"CORACLE_HOME": `\x`}, ""},
		{"drive alone", "windows", map[string]string{"CORACLE_HOME": `D:x`}, ""},
		{"nothing", "linux", nil, ""},
		{"nothing on windows", "windows", map[string]string{"HOME": "/x"}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := paths.Home(tc.goos, func(k string) string { return tc.env[k] })
			if got != tc.want || (err == nil) != (tc.want != "") {
				t.Errorf("%q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"a", "default", "a-b", "0", strings.Repeat("a", 32)} {
		if err := paths.CheckName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "-", "a-", "-a", "A", "a b", "a.b", "..", "a/b", `a\b`, "ä", "a\n", "a\x00", strings.Repeat("a", 33)} {
		if err := paths.CheckName(bad); !errors.Is(err, paths.ErrName) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestForMachine(t *testing.T) {
	m, err := paths.ForMachine("/h", "work")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range []string{m.Config(), m.APISocket(), m.DockerSocket(), m.DataDisk(), m.Console(), m.Log(), m.Lock(), m.Last(), m.FormerContext(), m.RunDir()} {
		if filepath.Dir(p) != m.Dir || seen[p] {
			t.Errorf("%s is not in %s, or is there twice", p, m.Dir)
		}
		seen[p] = true
	}
	if got := m.DockerHost(); got != "unix:///h/machines/work/docker.sock" {
		t.Errorf("docker host %s", got)
	}
	if _, err := paths.ForMachine("/h", "../x"); !errors.Is(err, paths.ErrName) {
		t.Errorf("odd name: %v", err)
	}
	// The longest name of a socket in a machine's directory decides.
	fits := paths.MaxSocket - len("/machines/a/run/vsock.sock")
	if _, err := paths.ForMachine("/"+strings.Repeat("h", fits-1), "a"); err != nil {
		t.Error(err)
	}
	if _, err := paths.ForMachine("/"+strings.Repeat("h", fits), "a"); !errors.Is(err, paths.ErrTooLong) {
		t.Errorf("long home: %v", err)
	}
}

func TestContextName(t *testing.T) {
	for machine, want := range map[string]string{"default": "coracle", "work": "coracle-work"} {
		if got := paths.ContextName(machine); got != want {
			t.Errorf("%s: %s, want %s", machine, got, want)
		}
	}
}
