package integrate

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSetCurrentContext(t *testing.T) {
	for _, tc := range []struct{ name, in, ctx, want string }{
		{"empty object", "{}\n", "coracle", "{\n\t\"currentContext\": \"coracle\"\n}\n"},
		{"added last, indented alike", "{\n  \"b\": 1,\n  \"a\": {\"x\": [1, 2]}\n}", "coracle", "{\n  \"b\": 1,\n  \"a\": {\"x\": [1, 2]},\n  \"currentContext\": \"coracle\"\n}"},
		{"one line", `{"a":1}`, "coracle", `{"a":1,"currentContext": "coracle"}`},
		{"replaced in place", `{"currentContext" : "old" ,"a":1}`, "coracle", `{"currentContext" : "coracle" ,"a":1}`},
		{"twice", `{"currentContext":"a","currentContext":"b"}`, "c", `{"currentContext":"c","currentContext":"c"}`},
		{"added to one", "{\n  \"a\": 1\n}", "c", "{\n  \"a\": 1,\n  \"currentContext\": \"c\"\n}"},
		{"removed first", `{"currentContext": "a" , "b": 1}`, "", `{ "b": 1}`},
		{"removed last", "{\n\t\"b\": 1,\n\t\"currentContext\": \"a\"\n}", "", "{\n\t\"b\": 1\n}"},
		{"removed alone", "{\n\t\"currentContext\": \"a\"\n}", "", "{\n}"},
		{"removed twice", `{"currentContext":"a","b":1,"currentContext":"b"}`, "", `{"b":1}`},
		{"not there", `{"b":1}`, "", `{"b":1}`},
		{"key inside another", `{"x":{"currentContext":"no"}}`, "", `{"x":{"currentContext":"no"}}`},
		{"escaped key and comma in strings", `{"a,\"":",","b":"}"}`, "c", `{"a,\"":",","b":"}","currentContext": "c"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := setCurrentContext([]byte(tc.in), tc.ctx)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, bad := range []string{"", "null", "[]", "{", `{"a":1}{`, `{"a":1} x`, `{'a':1}`, "{\"a\":1,}", "\ufeff{}"} {
		if out, err := setCurrentContext([]byte(bad), "c"); err == nil {
			t.Errorf("%q was taken and became %q", bad, out)
		}
	}
}

func FuzzSetCurrentContext(f *testing.F) {
	for _, s := range []string{`{}`, `{"auths":{"a":{}},"currentContext":"x"}`, `{"a":1,"a":2}`, "{\n}", `{"currentContext":null}`} {
		f.Add([]byte(s), "coracle")
		f.Add([]byte(s), "")
	}
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		name = strings.ToValidUTF8(name, "")
		out, err := setCurrentContext(data, name)
		if err != nil {
			return
		}
		var before, after map[string]json.RawMessage
		if err := json.Unmarshal(data, &before); err != nil {
			t.Fatalf("took %q, which is no JSON object", data)
		}
		if err := json.Unmarshal(out, &after); err != nil {
			t.Fatalf("%q became %q: %v", data, out, err)
		}
		var got string
		if raw, ok := after[currentKey]; ok && json.Unmarshal(raw, &got) != nil || got != name {
			t.Fatalf("%q became %q: context %q, want %q", data, out, got, name)
		}
		delete(before, currentKey)
		delete(after, currentKey)
		if diff := cmp.Diff(before, after); diff != "" {
			t.Fatalf("%q became %q: %s", data, out, diff)
		}
	})
}

// desk is a docker directory and a machine's context on it.
func desk(t *testing.T, config string) Context {
	t.Helper()
	dir := t.TempDir()
	c := Context{DockerDir: filepath.Join(dir, "docker"), Name: "coracle", Host: "unix:///x/docker.sock", Former: filepath.Join(dir, "former")}
	if config != "" {
		write(t, c.configPath(), config)
	}
	return c
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func selected(t *testing.T, c Context) string {
	t.Helper()
	data, err := c.readConfig()
	if err != nil {
		t.Fatal(err)
	}
	name, err := currentContext(data)
	if err != nil {
		t.Fatal(err)
	}
	return name
}

func TestSetAndUnset(t *testing.T) {
	for _, tc := range []struct{ name, config, after string }{
		{"no directory", "", "{\n}\n"},
		{"default selected", `{"auths":{}}`, `{"auths":{}}`},
		{"another selected", `{"currentContext":"mine","auths":{}}`, `{"currentContext":"mine","auths":{}}`},
		{"another that is gone", `{"currentContext":"gone","auths":{}}`, `{"auths":{}}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := desk(t, tc.config)
			write(t, filepath.Join(metaDir(c.DockerDir, "mine"), "meta.json"), `{"Name":"mine"}`)
			for range 2 { // a second start after a crash
				if err := c.Set(); err != nil {
					t.Fatal(err)
				}
			}
			if got := selected(t, c); got != "coracle" || c.host() != c.Host {
				t.Fatalf("selected %q leading to %q", got, c.host())
			}
			for range 2 {
				if err := c.Unset(); err != nil {
					t.Fatal(err)
				}
			}
			data, err := os.ReadFile(c.configPath())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.after, string(data)); diff != "" {
				t.Error(diff)
			}
			if exists(c.DockerDir, c.Name) {
				t.Error("the context was left behind")
			}
			if _, err := os.Stat(c.Former); err == nil {
				t.Error("the former context is still remembered")
			}
		})
	}
}

func TestUserChoseAnother(t *testing.T) {
	c := desk(t, `{}`)
	if err := c.Set(); err != nil {
		t.Fatal(err)
	}
	write(t, c.configPath(), `{"currentContext":"theirs"}`)
	if err := c.Unset(); err != nil {
		t.Fatal(err)
	}
	if got := selected(t, c); got != "theirs" {
		t.Errorf("selected %q: want the user's own choice", got)
	}
}

func TestTwoMachines(t *testing.T) {
	a := desk(t, `{}`)
	b := a
	b.Name, b.Host, b.Former = "coracle-b", "unix:///y/docker.sock", a.Former+"-b"
	for _, err := range []error{a.Set(), b.Set(), a.Unset()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := selected(t, a); got != "coracle-b" {
		t.Errorf("selected %q after the first was stopped", got)
	}
	if err := b.Unset(); err != nil {
		t.Fatal(err)
	}
	if got := selected(t, a); got != "" {
		t.Errorf("selected %q, which is gone", got)
	}
}

func TestNotOurs(t *testing.T) {
	c := desk(t, `{}`)
	live := filepath.Join(t.TempDir(), "live.sock")
	write(t, live, "")
	path := filepath.Join(c.metaDir(), "meta.json")
	theirs := `{"Name":"coracle","Endpoints":{"docker":{"Host":"unix://` + live + `"}}}`
	write(t, path, theirs)
	if err := c.Set(); err == nil || !strings.Contains(err.Error(), live) {
		t.Errorf("took another's context: %v", err)
	}
	if err := c.Unset(); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(path); string(data) != theirs {
		t.Errorf("changed another's context: %s", data)
	}
	os.Remove(live)
	if err := c.Set(); err != nil {
		t.Errorf("did not replace a context that leads nowhere: %v", err)
	}
}

func TestOddConfig(t *testing.T) {
	for _, odd := range []string{"", "not json", "[]", `{"currentContext": 7}`} {
		c := desk(t, "x")
		write(t, c.configPath(), odd)
		if err := c.Set(); err == nil {
			t.Errorf("%q: want a note", odd)
		}
		if err := c.Unset(); err != nil {
			t.Errorf("%q: %v", odd, err)
		}
		if data, _ := os.ReadFile(c.configPath()); string(data) != odd {
			t.Errorf("%q became %q", odd, data)
		}
		if exists(c.DockerDir, c.Name) {
			t.Errorf("%q: the context was left behind", odd)
		}
	}
}

// TestChangedMeanwhile has another program write between our look at the file and our own writing.
func TestChangedMeanwhile(t *testing.T) {
	c := desk(t, `{"auths":{}}`)
	seen, err := c.readConfig()
	if err != nil {
		t.Fatal(err)
	}
	login := `{"auths":{"registry":{"auth":"eA=="}}}`
	write(t, c.configPath(), login)
	tries := 0
	err = again(func() error {
		if tries++; tries == 1 {
			return c.writeConfig(seen, c.Name)
		}
		if data, _ := c.readConfig(); string(data) != login {
			t.Errorf("the other's words became %q", data)
		}
		return c.choose()
	})
	if err != nil || tries != 2 {
		t.Errorf("%d tries, error %v", tries, err)
	}
	if data, _ := c.readConfig(); !strings.Contains(string(data), "eA==") || selected(t, c) != c.Name {
		t.Errorf("the file became %s", data)
	}
	if entries, _ := os.ReadDir(c.DockerDir); len(entries) != 1 {
		t.Errorf("temporary files left: %v", entries)
	}
}

func TestModeAndLink(t *testing.T) {
	c := desk(t, "")
	real := filepath.Join(t.TempDir(), "dotfiles.json")
	write(t, real, `{"a":1}`)
	if err := os.MkdirAll(c.DockerDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, c.configPath()); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(c.configPath())
	if err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v %v", st.Mode(), err)
	}
	if st, _ := os.Stat(real); st.Mode().Perm() != 0o640 {
		t.Errorf("mode became %v", st.Mode())
	}
	if entries, _ := os.ReadDir(filepath.Dir(real)); len(entries) != 1 {
		t.Errorf("temporary files left: %v", entries)
	}
}

func TestReadOnlyDirectory(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root writes everywhere: run as another user")
	}
	c := desk(t, `{}`)
	if err := os.Chmod(c.DockerDir, 0o500); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(); err == nil {
		t.Error("want an error")
	}
}
