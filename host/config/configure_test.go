package config_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/config"
)

// place is a settings file that is not there yet, of a user with a home and some directories.
func place(t *testing.T) (*config.File, string) {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"home", "work", "tools", "coracle/machines/default"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	h := host
	h.Home, h.Coracle = filepath.Join(dir, "home"), filepath.Join(dir, "coracle")
	m := filepath.Join(h.Coracle, "machines/default")
	return &config.File{Machine: "default", Path: filepath.Join(m, "config.yaml"), Disk: filepath.Join(m, "data.img"), Host: h}, dir
}

// running is a machine that follows what it is told, or fails to. While it is busy it cannot change its MTU.
type running struct {
	state api.State
	s     api.Settings
	told  []api.Settings
	busy  bool
	fail  error
}

func (r *running) Status() api.Status { return api.Status{State: r.state, Settings: r.s} }

func (r *running) Apply(_ context.Context, s api.Settings) error {
	if r.fail != nil {
		return r.fail
	}
	if mtu := `"mtu"`; r.busy && strings.Contains(string(s.Engine), mtu) != strings.Contains(string(r.s.Engine), mtu) {
		return api.Errorf(api.CodeRestart, "docker does not change mtu while containers run")
	}
	r.told, r.s = append(r.told, s), s
	return nil
}

// setting is the values of a key, joined.
func setting(t *testing.T, c api.Configuration, key string) string {
	t.Helper()
	for _, k := range c.Keys {
		if k.Key == key {
			return strings.Join(k.Values, " ")
		}
	}
	t.Fatalf("there is no setting %s", key)
	return ""
}

// change makes a change out of "set KEY VALUE...", with DIR in it replaced.
func change(line, dir string) api.Change {
	words := strings.Fields(strings.ReplaceAll(line, "DIR", dir))
	ch := api.Change{Verb: words[0]}
	if len(words) > 1 {
		ch.Key, ch.Values = words[1], words[2:]
	}
	return ch
}

// TestConfigure tells a stopped machine's story: each line is a change and what its key is then.
func TestConfigure(t *testing.T) {
	f, dir := place(t)
	for _, step := range []struct{ line, want string }{
		{"set cpus 2", "2"},
		{"set memory 1.5GiB", "1536MiB"},
		{"set memory 2g", "2GiB"},
		{"set arch arm64", "arm64"},
		{"remove arch", ""},
		{"add shares DIR/work:ro", "DIR/home DIR/work:ro"},
		{"add share DIR/tools:ro:secrets DIR/work", "DIR/home DIR/work DIR/tools:ro:secrets"},
		{"remove shares DIR/work:ro", "DIR/home DIR/tools:ro:secrets"},
		{"remove shares all", ""},
		{"set shares DIR/home/ DIR/work", "!write DIR/home"},
		{"set shares DIR/work", "DIR/work"},
		{"set ports.address 0.0.0.0", "0.0.0.0"},
		{"set ports.client-address off", "false"},
		{"set network.loopback no", "false"},
		{"remove network.loopback", "true"},
		{"set network.http-proxy http://proxy.example:3128", "http://proxy.example:3128"},
		{"set network.no-proxy *", "*"},
		{"remove network.no-proxy", ""},
		{"set ssh false", "false"},
		{"add engine.insecure-registries registry.lan:5000 10.0.0.0/8", "registry.lan:5000 10.0.0.0/8"},
		{"add engine.insecure-registries registry.lan:5000", "registry.lan:5000 10.0.0.0/8"},
		{"remove engine.insecure-registries 10.0.0.0/8", "registry.lan:5000"},
		{`set engine.registry-mirrors ["https://mirror.lan"]`, "https://mirror.lan"},
		{"set engine.debug true", "true"},
		{"set engine.log-driver local", "local"},
		{`set engine.log-opts {"max-size":"10m","max-file":3}`, `{"max-file":3,"max-size":"10m"}`},
		{"set engine.mtu 1400", "1400"},
		{"remove engine.mtu", ""},
		{"add engine.no-such-key a b", "a b"},
		{"remove engine.no-such-key a", "b"},
		{"remove engine.no-such-key", ""},
		{"set engine.no-such-key 1234567890123", "1234567890123"},
		{"set engine.no-such-key word", "word"},
		{"remove engine.no-such-key word", ""},

		{"set cpus 99", "!this host has 8"},
		{"set cpus 1 2", "!takes one value"},
		{"set cpus many", `!"many" is no number`},
		{"set memory 8", "!8 of memory"},
		{"set ssh maybe", "!neither true nor false"},
		{"add cpus 1", "!no list to add to"},
		{"remove cpus 7", `!cpus is not "7"`},
		{"remove shares", "!say what to remove"},
		{"remove shares DIR/none", "!shares has no"},
		{"add shares DIR/none", "!there is no such directory"},
		{"add shares work", "!not an absolute path"},
		{"add shares :ro", "!needs a directory"},
		{"add shares DIR/coracle/machines", "!Coracle keeps its machines there"},
		{"set loopback true", `!there is no setting "loopback"`},
		{"set nonsense 1", `!there is no setting "nonsense"`},
		{"fly cpus", `!by "fly"`},
		{"replace", "!no settings"},
		{"set engine.hosts tcp://0.0.0.0", "!engine.hosts is Coracle's own"},
		{"set engine.debug 7", "!neither true nor false"},
		{"set engine.mtu wide", "!want a whole number"},
		{"set engine.mtu 1.5", "!want a whole number"},
		{"set engine.log-opts 5", "!want a JSON object"},
		{"set engine.dns nine", "!no IP address"},
		{"set engine.insecure-registries http://registry.lan", "!leave out the http://"},
		{"set engine.insecure-registries registry.lan:99999", "!no registry"},
		{"set engine.registry-mirrors mirror.lan", "!no mirror"},
		{"set engine.registry-mirrors https://me:secret@mirror.lan", "!docker login"},
		{"set engine [1]", "!not a JSON object"},
	} {
		before, _ := os.ReadFile(f.Path)
		ch := change(step.line, dir)
		c, err := f.Configure(t.Context(), nil, ch)
		if want, fails := strings.CutPrefix(step.want, "!"); fails {
			var e *api.Error
			if want = strings.ReplaceAll(want, "DIR", dir); !errors.As(err, &e) || e.Hint == "" || !strings.Contains(e.Message+" "+e.Hint, want) || strings.Contains(e.Message, "secret@") {
				t.Errorf("%s: error %v: want %q and a hint", step.line, err, want)
			}
			if after, _ := os.ReadFile(f.Path); string(after) != string(before) {
				t.Errorf("%s: the file became %s", step.line, after)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", step.line, err)
			continue
		}
		if ch.Key == "share" {
			ch.Key = "shares"
		}
		if step.want == "" && ch.Key == "engine.no-such-key" {
			if slices.ContainsFunc(c.Keys, func(k api.Setting) bool { return k.Key == ch.Key }) {
				t.Errorf("%s: it is still there", step.line)
			}
		} else if got := setting(t, c, ch.Key); got != strings.ReplaceAll(step.want, "DIR", dir) {
			t.Errorf("%s: it is %q: want %q", step.line, got, step.want)
		}
		again, err := f.Configure(t.Context(), nil, api.Change{})
		if diff := cmp.Diff(c.Saved, again.Saved); diff != "" || err != nil {
			t.Errorf("%s: read again, error %v, (-want +got):\n%s", step.line, err, diff)
		}
	}
	if left, _ := filepath.Glob(f.Path + "?*"); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// TestConfigureAll sets the engine's keys as a whole, and everything as a whole.
func TestConfigureAll(t *testing.T) {
	f, dir := place(t)
	c, err := f.Configure(t.Context(), nil, api.Change{Verb: api.ChangeSet, Key: "engine", Values: []string{`{"debug": true, "labels": ["a=b"]}`}})
	if err != nil || !slices.Equal(c.Changed, []string{"engine.debug", "engine.labels"}) || c.Running || len(c.Waiting) > 0 {
		t.Errorf("%+v, %v", c.Changed, err)
	}
	want := c.Saved
	want.CPUs, want.Shares = 3, []api.Share{{Path: filepath.Join(dir, "work"), Secrets: true}}
	if c, err = f.Configure(t.Context(), nil, api.Change{Verb: api.ChangeReplace, Settings: &want}); err != nil || !slices.Equal(c.Changed, []string{"cpus", "shares"}) {
		t.Errorf("%+v, %v", c.Changed, err)
	}
	got, err := config.Load(f.Path, config.Default(f.Host))
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("error %v, (-want +got):\n%s", err, diff)
	}
	want.Shares = append(want.Shares, want.Shares[0])
	if _, err = f.Configure(t.Context(), nil, api.Change{Verb: api.ChangeReplace, Settings: &want}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a share twice: %v", err)
	}
	if err := os.WriteFile(f.Disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(f.Disk, 64*gib); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Configure(t.Context(), nil, change("set disk 32GiB", "")); err == nil || !strings.Contains(err.Error(), "cannot shrink") {
		t.Errorf("a smaller disk: %v", err)
	}
}

// TestConfigureLive has a machine that runs: it follows what it can, waits with the rest, and where it refuses nothing is
// kept.
func TestConfigureLive(t *testing.T) {
	f, dir := place(t)
	m := &running{state: api.Running, s: config.Default(f.Host)}
	m.s.CPUs = 3 // as it was when it started
	if err := config.Save(f.Path, m.s); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		line    string
		told    bool // the machine
		waiting string
		engine  string // in force
		busy    bool
	}{
		{"set cpus 2", false, "cpus", "", false},
		{"add shares DIR/work", true, "cpus", "", false},
		{"add shares DIR/work", false, "cpus", "", false},
		{"set engine.debug true", true, "cpus", `{"debug":true}`, true},
		{"set engine.mtu 1400", false, "cpus engine.mtu", `{"debug":true}`, true},
		{"set network.no-proxy a", false, "cpus engine.mtu network.no-proxy", `{"debug":true}`, true},
		{"remove engine.debug", true, "cpus engine.mtu network.no-proxy", ``, true},
		{"set cpus 3", false, "engine.mtu network.no-proxy", ``, true},
		{"set ssh no", true, "", `{"mtu":1400}`, false},
		{"remove engine.mtu", false, "engine.mtu", `{"mtu":1400}`, true},
		{"set engine.mtu 1400", false, "", `{"mtu":1400}`, true},
		{"set engine.something else", true, "", `{"mtu":1400,"something":"else"}`, true},
	} {
		m.busy = step.busy
		n := len(m.told)
		c, err := f.Configure(t.Context(), m, change(step.line, dir))
		if err != nil {
			t.Fatalf("%s: %v", step.line, err)
		}
		if said := strings.Contains(strings.Join(c.Notes, " "), "docker does not change mtu"); said != strings.Contains(step.waiting, "mtu") {
			t.Errorf("%s: notes %q", step.line, c.Notes)
		}
		waiting := slices.Sorted(slices.Values(c.Waiting))
		if (len(m.told) > n) != step.told || strings.Join(waiting, " ") != step.waiting || string(m.s.Engine) != step.engine || !c.Running {
			t.Errorf("%s: told %d, waiting %v, engine %s", step.line, len(m.told)-n, c.Waiting, m.s.Engine)
		}
		if diff := cmp.Diff(m.s, c.InForce); diff != "" {
			t.Errorf("%s: in force (-machine +told):\n%s", step.line, diff)
		}
	}

	before, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	m.fail = api.Errorf(api.CodeEngine, "no")
	if _, err := f.Configure(t.Context(), m, change("set ssh true", "")); api.CodeOf(err) != api.CodeEngine {
		t.Errorf("a machine that refuses: %v", err)
	}
	m.state = api.Stopping
	if _, err := f.Configure(t.Context(), m, change("set ssh true", "")); api.CodeOf(err) != api.CodeRunning {
		t.Errorf("a machine that stops: %v", err)
	}
	if c, err := f.Configure(t.Context(), m, api.Change{}); err != nil || c.Running || c.Saved.SSH {
		t.Errorf("looking at one that stops: %v", err)
	}
	if after, _ := os.ReadFile(f.Path); string(after) != string(before) {
		t.Errorf("the file became %s", after)
	}
	if left, _ := filepath.Glob(f.Path + "?*"); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// TestConfigureText edits the file as its owner does.
func TestConfigureText(t *testing.T) {
	f, dir := place(t)
	c, err := f.Configure(t.Context(), nil, api.Change{})
	if err != nil || !strings.Contains(c.Text, "cpus: 4\n") || !strings.HasPrefix(c.Text, "# ") {
		t.Fatalf("%v: %s", err, c.Text)
	}
	if _, err := os.Stat(f.Path); err == nil {
		t.Error("looking made a file")
	}
	mine := "# mine\ncpus: 2 # an old computer\nshares:\n  # what I work on\n  - path: " + dir + "/work\n  - path: " + dir + "/tools # never changes\n    read-only: true\n"
	if c, err = f.Configure(t.Context(), nil, api.Change{Verb: api.ChangeText, Text: mine, Was: c.Text}); err != nil || c.Text != mine {
		t.Fatalf("%v: %s", err, c.Text)
	}
	for _, bad := range []struct{ text, was, want string }{
		{"cpus: 3\n", "other", "changed by somebody else"},
		{"cpu: 3\n", mine, "line 1: unknown key cpu"},
		{"ports:\n  adress: 1.2.3.4\n", mine, "line 2: unknown key adress"},
		{"shares:\n  - {path: /x, ro: true}\n", mine, "line 2: unknown key ro"},
		{"shares:\n- path: " + dir + "/nowhere\n", mine, "no such directory"},
		{"ports:\n  address: localhost\n", mine, "not an IP address"},
		{"engine:\n  1: 2\n  [a]: 3\n", mine, "line 3"},
	} {
		if _, err := f.Configure(t.Context(), nil, api.Change{Verb: api.ChangeText, Text: bad.text, Was: bad.was}); err == nil || !strings.Contains(err.Error(), bad.want) {
			t.Errorf("%q: error %v: want %q", bad.text, err, bad.want)
		}
	}

	// Comments outlive changes of what they stand beside, and of what they do not.
	for _, line := range []string{"set cpus 3", "remove shares DIR/work", "add shares DIR/home", "set engine.debug true"} {
		if c, err = f.Configure(t.Context(), nil, change(line, dir)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"# mine\n", "cpus: 3 # an old computer", "tools # never changes", "debug: true"} {
		if !strings.Contains(c.Text, want) {
			t.Errorf("the file lacks %q:\n%s", want, c.Text)
		}
	}

	// A file that nobody can read is mended by a text alone.
	if err := os.WriteFile(f.Path, []byte("cpus: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Configure(t.Context(), nil, change("set cpus 2", "")); err == nil || !strings.Contains(err.Error(), f.Path+": line 1") {
		t.Errorf("a broken file: %v", err)
	}
	if c, err = f.Configure(t.Context(), nil, api.Change{Verb: api.ChangeText, Text: "cpus: 2\n", Was: "cpus: x\n"}); err != nil || c.Saved.CPUs != 2 {
		t.Errorf("mending: %v", err)
	}
}

// TestOldFile: what an older file does not say is as it comes; an empty list is empty.
func TestOldFile(t *testing.T) {
	f, dir := place(t)
	for text, want := range map[string]string{"version: 1\ncpus: 1\n": dir + "/home", "shares: []\n": "", "shares:\n": "", "ports:\nnetwork:\nengine:\n": dir + "/home"} {
		if err := os.WriteFile(f.Path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := f.Configure(t.Context(), nil, api.Change{})
		if err != nil || setting(t, c, "shares") != want || setting(t, c, "ports.address") != "127.0.0.1" || !c.Saved.SSH {
			t.Errorf("%q: %v, %+v", text, err, c.Saved)
		}
	}
}

func TestCheckShares(t *testing.T) {
	f, dir := place(t)
	if err := os.Symlink(filepath.Join(dir, "coracle"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/": "own", "/usr": "own /usr", "/usr/local/x": "own /usr", "/etc/docker": "own /etc", "/var": "own /var/", "/var/lib/x": "own /var/lib", "/proc/1": "own /proc",
		"/run/user/1000": "own /run", "relative": "absolute", "": "absolute", "/a/../b": "shortest form", "/a/": "shortest form", "/a\x00b": "absolute",
		dir + "/coracle": "Coracle keeps", dir + "/coracle/x": "Coracle keeps", dir + "/link": "Coracle keeps", dir + "/link/none/x": "Coracle keeps",
		dir: "", "/var/www": "", "/usrx": "", "/home": "", "/root": "", "/tmp/a:b": "", dir + "/coracle2": "",
	} {
		s := config.Default(f.Host)
		s.Shares = []api.Share{{Path: path}}
		err := config.Check(s, f.Host)
		if want == "" != (err == nil) || err != nil && (!strings.Contains(err.Error(), want) || api.CodeOf(err) != api.CodeConfig) {
			t.Errorf("%q: error %v: want %q", path, err, want)
		}
	}
}

func TestCheckNetwork(t *testing.T) {
	dir := t.TempDir()
	good, key := certificate(t)
	for name, text := range map[string]string{"good": good, "both": "text\n" + key + good + good, "key": key, "empty": "\n", "rot": "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		set  func(*api.Settings)
		want string
	}{
		{func(s *api.Settings) { s.Ports.Address = "" }, "not an IP"},
		{func(s *api.Settings) { s.Ports.Address = "224.0.0.1" }, "not an IP"},
		{func(s *api.Settings) { s.Ports.Address = "127.0.0.1:80" }, "not an IP"},
		{func(s *api.Settings) { s.Ports.Address = "::" }, ""},
		{func(s *api.Settings) { s.Network.HTTPProxy = "proxy:3128" }, "network.http-proxy is not"},
		{func(s *api.Settings) { s.Network.HTTPSProxy = "ftp://me:secret@proxy" }, "network.https-proxy is not"},
		{func(s *api.Settings) { s.Network.HTTPSProxy = "http://" }, "network.https-proxy is not"},
		{func(s *api.Settings) { s.Network.HTTPSProxy = "http://a b:1" }, "network.https-proxy is not"},
		{func(s *api.Settings) { s.Network.HTTPSProxy = "http://me:secret@proxy:1/" }, ""},
		{func(s *api.Settings) { s.Network.NoProxy = "a, b" }, "white space"},
		{func(s *api.Settings) { s.Network.Certificates = []string{"good"} }, "absolute"},
		{func(s *api.Settings) { s.Network.Certificates = []string{dir + "/none"} }, "no such file"},
		{func(s *api.Settings) { s.Network.Certificates = []string{dir} }, "not a file"},
		{func(s *api.Settings) { s.Network.Certificates = []string{dir + "/good", dir + "/key"} }, "no certificate"},
		{func(s *api.Settings) { s.Network.Certificates = []string{dir + "/empty"} }, "is empty"},
		{func(s *api.Settings) { s.Network.Certificates = []string{dir + "/rot"} }, "certificate 1"},
		{func(s *api.Settings) { s.Network.Certificates = []string{dir + "/good", dir + "/both"} }, ""},
		{func(s *api.Settings) { s.Engine = json.RawMessage("[]") }, "not an object"},
		{func(s *api.Settings) { s.Engine = json.RawMessage("null") }, "not an object"},
		{func(s *api.Settings) { s.Engine = json.RawMessage(`{"dns":null}`) }, "list of texts"},
		{func(s *api.Settings) { s.Engine = json.RawMessage(`{"data-root":"/"}`) }, "own"},
	} {
		s := config.Default(host)
		tc.set(&s)
		err := config.Check(s, host)
		if tc.want == "" != (err == nil) || err != nil && (!strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("error %v: want %q", err, tc.want)
		}
	}
	all, err := config.Certificates(api.Settings{Network: api.Network{Certificates: []string{dir + "/good", dir + "/both"}}})
	if err != nil || strings.Count(all, "BEGIN") != 3 || strings.Contains(all, "KEY") {
		t.Errorf("%v: %s", err, all)
	}
}

func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return encode("CERTIFICATE", der), encode("EC PRIVATE KEY", private)
}

func TestAddShares(t *testing.T) {
	f, dir := place(t)
	s := config.Default(f.Host)
	got, err := config.AddShares(s, []string{dir + "/work:ro", dir + "/home:secrets"})
	want := []api.Share{{Path: dir + "/home", Secrets: true}, {Path: dir + "/work", ReadOnly: true}}
	if diff := cmp.Diff(want, got.Shares); diff != "" || err != nil {
		t.Errorf("error %v, (-want +got):\n%s", err, diff)
	}
	if got, err := config.AddShares(s, []string{dir + "/none"}); api.CodeOf(err) != api.CodeShare || len(got.Shares) != 1 {
		t.Errorf("a directory that is not there: %v", err)
	}
	got.Shares = append(got.Shares, api.Share{Path: dir + "/none"})
	if gone := config.Missing(got); len(gone) != 1 || gone[0].Code != api.CodeShare || !strings.Contains(gone[0].Message, "/none is not shared") {
		t.Errorf("missing: %v", gone)
	}
	if s.Shares[0].Secrets {
		t.Error("changed what it was given")
	}
}

// FuzzConfigure: whatever is written is read as what it was meant to be.
func FuzzConfigure(f *testing.F) {
	f.Add([]byte("cpus: 2 # two\nengine: {debug: true, a: [1, {b: c}]}\n"), "engine.x", `{"a":[1.50,"\u0007<é\\"]}`)
	f.Add([]byte("shares:\n  - path: /a\n"), "engine", `{"yes":"no","1":"2","n":null}`)
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte, key, value string) {
		file := &config.File{Path: filepath.Join(dir, "config.yaml"), Host: host}
		if err := os.WriteFile(file.Path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := file.Configure(t.Context(), nil, api.Change{Verb: api.ChangeSet, Key: key, Values: []string{value}})
		if err != nil {
			return
		}
		again, err := file.Configure(t.Context(), nil, api.Change{})
		if err != nil {
			t.Fatalf("%s=%q made a file that cannot be read: %v\n%s", key, value, err, c.Text)
		}
		for i, k := range again.Keys {
			if !cmp.Equal(k, c.Keys[i]) {
				t.Errorf("%+v is read as %+v from\n%s", c.Keys[i], k, c.Text)
			}
		}
	})
}
