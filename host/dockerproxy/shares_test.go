package dockerproxy

import (
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// tree makes a host: home with files and links, a directory that is not shared, and a link to a share.
func tree(t *testing.T) string {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"home/src", "home/.ssh", "data/deep", "with space/it's"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"home/file", "data/file"} {
		if err := os.WriteFile(filepath.Join(root, file), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"alias": "home", "home/inner": "src", "home/outer": "../data", "home/keys": ".ssh", "home/dangling": "/nowhere",
		"home/proc": "/proc/self", "sock": "machines/docker.sock",
	} {
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestShares(t *testing.T) {
	root := tree(t)
	home := root + "/home"
	s := &Shares{Machine: "work", Sockets: []string{root + "/machines/docker.sock"}, Hidden: func(p string) (string, string) {
		switch {
		case below(p, home+"/.ssh"):
			return home + "/.ssh", "coracle do it"
		case below(p, root+"/machines"):
			return root + "/machines", ""
		}
		return "", ""
	}}
	s.SetShares([]string{home + "/"})
	const share = "; to share it: coracle config add shares "
	for _, test := range []struct{ name, source, want, err string }{
		{"share", home, home, ""},
		{"below", home + "/src", home + "/src", ""},
		{"slash at the end", home + "/src///", home + "/src///", ""},
		{"new", home + "/new/deep", home + "/new/deep", ""},
		{"file", home + "/file", home + "/file", ""},
		{"dots inside", home + "/src/../file", home + "/file", ""},
		{"dots out", home + "/../data", "", root + "/data"},
		{"slashes", "/" + home + "//src", home + "/src", ""},
		{"same beginning", home + "2", "", "is not shared"},
		{"other case", strings.ToUpper(home), "", "is not shared"},
		{"very long", home + strings.Repeat("/x", 5000), home + strings.Repeat("/x", 5000), ""},
		{"very long elsewhere", "/data" + strings.Repeat("/x", 5000), "", "is not shared"},
		{"link inside", home + "/inner", home + "/inner", ""},
		{"dangling link", home + "/dangling", home + "/dangling", ""},
		{"link to the machine's own", home + "/proc", home + "/proc", "leads to /proc/"},
		{"link out", home + "/outer/deep", "", home + "/outer/deep leads to " + root + "/data/deep: " + root + `/data/deep is not shared with machine "work"` + share + root + "/data/deep"},
		{"another name of a share", root + "/alias/src", home + "/src", ""},
		{"new below another name", root + "/alias/new", home + "/new", ""},
		{"secret", home + "/.ssh/id", "", home + `/.ssh/id is not shared with machine "work": ` + home + "/.ssh is left out because it may hold keys; to include it: coracle do it"},
		{"secret by another name", root + "/alias/.ssh", "", "may hold keys"},
		{"link to a secret", home + "/keys", "", "may hold keys"},
		{"our own", root + "/machines/x", "", "no machine gets what is in " + root + "/machines"},
		{"directory", root + "/data", "", root + `/data is not shared with machine "work"` + share + root + "/data"},
		{"file elsewhere", root + "/data/file", "", `/data/file is not shared with machine "work"` + share + root + "/data"},
		{"new elsewhere", root + "/data/new/x", "", share + root + "/data"},
		{"quoted", root + "/with space/it's", "", share + "'" + root + `/with space/it'\''s'`},
		{"control characters", root + "/data\x1b[2J", "", `data\x1b[2J" is not shared`},
		{"file of the system", "/etc/passwd", "", "which has a system of its own in /etc: copy it to a directory that is shared"},
		{"nowhere", "/no/such", "", share + "/no/such"},
		{"socket", "/var/run/docker.sock", "/var/run/docker.sock", ""},
		{"socket's other name", "/run/docker.sock", "/run/docker.sock", ""},
		{"socket with slashes", "//var/run/docker.sock", "/var/run/docker.sock", ""},
		{"our socket", root + "/machines/docker.sock", "/run/docker.sock", ""},
		{"link to our socket", root + "/sock", "/run/docker.sock", ""},
		{"agent", "/run/host-services/ssh-auth.sock", "/run/host-services/ssh-auth.sock", ""},
		{"user's runtime directory", "/run/user/1000/wayland-0", "", "is not shared"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.name == "link to our socket" { // what it leads to exists while the machine runs
				if err := os.MkdirAll(root+"/machines", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(root+"/machines/docker.sock", nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := s.Source(test.source)
			if test.name == "link to the machine's own" && err == nil {
				return // /proc/self is /proc/PID here: the machine's own as well
			}
			if test.err == "" && (err != nil || got != test.want) {
				t.Errorf("source is %.200q, error %v: want %.200q", got, err, test.want)
			}
			if test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("source is %.200q, error %v: want %q", got, err, test.err)
			}
		})
	}
}

// TestSharesChange shares and unshares while the machine runs.
func TestSharesChange(t *testing.T) {
	root := tree(t)
	s := &Shares{Machine: "default", Command: "coracle config add shares --machine work"}
	for _, test := range []struct {
		shares []string
		ok     bool
	}{{nil, false}, {[]string{root + "/data"}, true}, {[]string{root + "/home", root}, true}, {[]string{root + "/home"}, false}} {
		s.SetShares(test.shares)
		if got, err := s.Source(root + "/data/x"); (err == nil) != test.ok {
			t.Errorf("with %q: source is %s, error %v", test.shares, got, err)
		}
	}
	if _, err := s.Source(root + "/data"); err == nil || !strings.Contains(err.Error(), "to share it: coracle config add shares --machine work "+root+"/data") {
		t.Errorf("error is %v", err)
	}
}

// TestShareOfAnotherName shares a directory by a link's name, as /tmp is one on macOS: its real name works too.
func TestShareOfAnotherName(t *testing.T) {
	root := tree(t)
	s := &Shares{Machine: "default"}
	s.SetShares([]string{root + "/alias"})
	for _, p := range []string{root + "/home/src", root + "/alias/src"} {
		if got, err := s.Source(p); got != root+"/alias/src" || err != nil {
			t.Errorf("%s: source is %s, error %v", p, got, err)
		}
	}
	s.SetShares([]string{"/"})
	if got, err := s.Source(root + "/data"); got != root+"/data" || err != nil {
		t.Errorf("with the root shared: source is %s, error %v", got, err)
	}
}

// TestPlaces holds the table to its purpose: the mounts of programs that look after their node.
func TestPlaces(t *testing.T) {
	for _, p := range []string{
		"/", "/proc", "/sys", "/sys/fs/cgroup", "/dev/disk", "/dev/mapper", "/dev/kmsg", "/var/run", "/run", "/run/udev/data", // node-exporter, cAdvisor
		"/lib/modules", "/lib/modules/6.1.0", "/boot", "/usr/src", // kind, k3s, Falco
		"/var/lib/docker", "/var/lib/docker/volumes", "/var/lib/docker/containers", "/var/run/docker/netns", // Portainer, Filebeat
		"/run/containerd/containerd.sock", "/etc/localtime", "/etc/machine-id",
	} {
		if got, err := (&Shares{}).Source(p); got != p || err != nil {
			t.Errorf("%s: source is %s, error %v", p, got, err)
		}
	}
	for _, p := range []string{"/home", "/usr", "/usr/lib", "/etc", "/etc/passwd", "/opt", "/data", "/Users/me", "/procx", "/run/media", "/var/lib/dockerx", "/var", "/tmp"} {
		if got, err := (&Shares{}).Source(p); err == nil {
			t.Errorf("%s: source is %s", p, got)
		}
	}
	for _, place := range places {
		if place.path != path.Clean(place.path) || place.why == "" {
			t.Errorf("place %+v", place)
		}
	}
}
