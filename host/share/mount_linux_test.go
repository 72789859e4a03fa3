package share

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// fixture is a server of one share with the tag "s".
type fixture struct {
	*Server
	root string // of the share, on the host
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func serve(t testing.TB, cfg Config, shares ...Share) fixture {
	t.Helper()
	root := filepath.Join(t.TempDir(), "share")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if cfg.Log == nil {
		cfg.Log = quiet()
	}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if shares == nil {
		shares = []Share{{Tag: "s", Path: root}}
	}
	if err := s.SetShares(shares); err != nil {
		t.Fatal(err)
	}
	return fixture{s, root}
}

// mount has this machine's kernel drive the server, and returns where the share is mounted.
func (f fixture) mount(t testing.TB) string {
	t.Helper()
	return bound(t, mountRaw(t, f.fileSystem(), f.options()))
}

// bound binds the share of a mounted device to a place of its own, as the guest does.
func bound(t testing.TB, device string) string {
	t.Helper()
	dir := device + ".s"
	must(t, os.Mkdir(dir, 0o755), unix.Mount(device+"/s", dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func mountRaw(t testing.TB, raw fuse.RawFileSystem, opts *fuse.MountOptions) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount: run as root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse: modprobe fuse")
	}
	dir := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	opts.DirectMountStrict, opts.AllowOther, opts.Options = true, true, []string{"default_permissions"}
	server, err := fuse.NewServer(raw, dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestMountedFiles(t *testing.T) {
	f := serve(t, Config{})
	dir := f.mount(t)
	if err := os.WriteFile(dir+"/a", []byte("hello"), 0o666); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(f.root + "/a"); string(b) != "hello" {
		t.Fatalf("host reads %q, %v", b, err)
	}
	if err := os.Mkdir(dir+"/d", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+"/a", dir+"/d/b"); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir + "/d")
	if err != nil || len(entries) != 1 || entries[0].Name() != "b" {
		t.Fatal(entries, err)
	}
	if b, err := os.ReadFile(dir + "/d/b"); string(b) != "hello" {
		t.Fatalf("guest reads %q, %v", b, err)
	}
}
