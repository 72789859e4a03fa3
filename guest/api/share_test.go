package api

import (
	"strings"
	"testing"
)

func TestShareCheck(t *testing.T) {
	for _, path := range []string{
		"/home/u", "/root", "/Users/u", "/work", "/tmp/x", "/tmp", "/var/folders/zz", "/private/var", "/mnt/c", "/opt/homebrew",
		"/a b\n\u00e9", "/usrlocal", "/var/lib/jenkins", "/run/media/u/stick", "/Volumes", "/var/tmp",
	} {
		if err := (Share{Path: path, Tag: "s-1"}).Check(); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	for _, c := range []struct{ path, want string }{
		{"/", "own system"}, {"/usr", "own system is at /usr"}, {"/usr/src/x", "own system is at /usr"}, {"/bin", "own"},
		{"/lib64", "own"}, {"/etc/x", "own"}, {"/proc/1", "own"}, {"/sys", "own"}, {"/dev/shm", "own"}, {"/run", "own"},
		{"/run/coracle/host", "own"}, {"/data", "own"}, {"/var", "own system is at /var/lib/docker"}, {"/var/lib", "own"},
		{"/var/lib/docker/volumes", "own"}, {"/var/run/x", "own"}, {"home", "clean"}, {"", "clean"}, {"/a/", "clean"}, {"/a/../usr", "clean"},
		{"//a", "clean"}, {"/a\x00b", "UTF-8"}, {"/\xff", "UTF-8"}, {"/" + strings.Repeat("a", 4095), "4096 bytes"},
	} {
		if err := (Share{Path: c.path, Tag: "s"}).Check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q: %v: want an error with %q", c.path, err, c.want)
		}
	}
	for _, tag := range []string{"", "A", "a/b", "..", "a\n", "\u00e9", strings.Repeat("a", 256)} {
		if err := (Share{Path: "/a", Tag: tag}).Check(); err == nil || !strings.Contains(err.Error(), "tag") {
			t.Errorf("tag %.20q: %v", tag, err)
		}
	}
}
