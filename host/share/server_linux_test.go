package share

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func wants(t testing.TB, what string, got, want fuse.Status) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

func hostStat(t testing.TB, path string) *syscall.Stat_t {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	return info.Sys().(*syscall.Stat_t)
}

func TestInit(t *testing.T) {
	f := serve(t, Config{})
	c := &client{s: f.Server}
	if st, _ := c.lookup(fuse.FUSE_ROOT_ID, "s"); st != fuse.EIO {
		t.Errorf("a request before INIT: %v", st)
	}
	for _, bad := range []fuse.InitIn{{Major: 6, Minor: 38}, {Major: 8, Minor: 0}, {Major: 7, Minor: 12}} {
		if st, _ := c.call(opInit, 0, raw(&bad), ""); st == fuse.OK {
			t.Errorf("version %d.%d was agreed on", bad.Major, bad.Minor)
		}
	}
	in := fuse.InitIn{Major: 7, Minor: 40, Flags: ^uint32(0), Flags2: ^uint32(0), MaxReadAhead: 1 << 20}
	st, b := c.call(opInit, 0, raw(&in), "")
	wants(t, "INIT", st, fuse.OK)
	out := as[fuse.InitOut](b)
	if out.MaxWrite != 1<<20 || out.MaxPages != 256 || out.MaxReadAhead != 1<<20 {
		t.Errorf("max write %d, pages %d, read-ahead %d", out.MaxWrite, out.MaxPages, out.MaxReadAhead)
	}
	flags := out.Flags64()
	for name, flag := range map[string]uint64{
		"async read": fuse.CAP_ASYNC_READ, "O_TRUNC": fuse.CAP_ATOMIC_O_TRUNC, "auto inval": fuse.CAP_AUTO_INVAL_DATA,
		"readdirplus": fuse.CAP_READDIRPLUS, "parallel": fuse.CAP_PARALLEL_DIROPS, "killpriv": fuse.CAP_HANDLE_KILLPRIV_V2,
		"no opendir": fuse.CAP_NO_OPENDIR_SUPPORT,
	} {
		if flags&flag == 0 {
			t.Errorf("%s is not agreed on", name)
		}
	}
	for name, flag := range map[string]uint64{
		"write-back": fuse.CAP_WRITEBACK_CACHE, "POSIX locks": fuse.CAP_POSIX_LOCKS, "flock": fuse.CAP_FLOCK_LOCKS,
		"ACLs": fuse.CAP_POSIX_ACL, "passthrough": fuse.CAP_PASSTHROUGH, "no open": fuse.CAP_NO_OPEN_SUPPORT,
	} {
		if flags&flag != 0 {
			t.Errorf("%s is agreed on", name)
		}
	}
}

// TestOwners: what a container makes of owner and mode is what it sees, after a restart too; the host's file stays the user's.
func TestOwners(t *testing.T) {
	dir := t.TempDir()
	f := serve(t, Config{Dir: dir})
	c := f.client(t)
	root := c.root(t, "s")
	us := uint32(os.Geteuid())
	tests := []struct {
		name string
		mode uint32 // of the request, with its kind
		host uint32
	}{
		{"plain", unix.S_IFREG | 0o644, 0o644}, {"open", unix.S_IFREG | 0o666, 0o644}, {"closed", unix.S_IFREG | 0o400, 0o600},
		{"nothing", unix.S_IFREG, 0o600}, {"suid", unix.S_IFREG | 0o6755, 0o755}, {"sticky", unix.S_IFDIR | 0o1777, 0o755},
		{"dir", unix.S_IFDIR | 0o755, 0o755}, {"shut", unix.S_IFDIR | 0o111, 0o711}, {"pipe", unix.S_IFIFO | 0o622, 0o600},
		{"socket", unix.S_IFSOCK | 0o777, 0o755},
	}
	defer unix.Umask(unix.Umask(0))
	check := func(t *testing.T, c *client, name string, mode, host uint32, uid, gid uint32) {
		t.Helper()
		st, e := c.lookup(c.root(t, "s"), name)
		wants(t, "lookup", st, fuse.OK)
		if e.Mode != mode || e.Uid != uid || e.Gid != gid {
			t.Errorf("%s: the guest sees %o %d:%d, want %o %d:%d", name, e.Mode, e.Uid, e.Gid, mode, uid, gid)
		}
		h := hostStat(t, filepath.Join(f.root, name))
		if h.Mode&0o7777 != host || h.Uid != us {
			t.Errorf("%s: the host has %o of %d, want %o of %d", name, h.Mode, h.Uid, host, us)
		}
	}
	for _, test := range tests {
		switch test.mode & unix.S_IFMT {
		case unix.S_IFREG:
			st, _ := c.create(root, test.name, unix.O_RDWR, test.mode)
			wants(t, test.name, st, fuse.OK)
		case unix.S_IFDIR:
			st, _ := c.mkdir(root, test.name, test.mode)
			wants(t, test.name, st, fuse.OK)
		default:
			wants(t, test.name, c.mknod(root, test.name, test.mode, 0), fuse.OK)
		}
		check(t, c, test.name, test.mode, test.host, 1000, 1000)
	}
	_, e := c.lookup(root, "plain")
	st, _ := c.chown(e.NodeId, 999, 0)
	wants(t, "chown", st, fuse.OK)
	st, _ = c.chmod(e.NodeId, 0o4751)
	wants(t, "chmod", st, fuse.OK)
	check(t, c, "plain", unix.S_IFREG|0o4751, 0o755, 999, 0) // group and others may read: execute follows

	must(t, f.Close())
	again, err := New(Config{Log: quiet(), Dir: dir})
	must(t, err)
	defer again.Close()
	must(t, again.SetShares([]Share{{Tag: "s", Path: f.root}}))
	c = fixture{again, f.root}.client(t)
	check(t, c, "plain", unix.S_IFREG|0o4751, 0o755, 999, 0)
	for _, test := range tests[1:] {
		check(t, c, test.name, test.mode, test.host, 1000, 1000)
	}
	must(t, os.Chmod(f.root+"/open", 0o640)) // the host has the last word
	check(t, c, "open", unix.S_IFREG|0o640, 0o640, 1000, 1000)
	if _, e := c.lookup(c.root(t, "s"), "plain"); c.write(e.NodeId, mustOpen(t, c, e.NodeId), "x") != fuse.OK {
		t.Error("write")
	}
	check(t, c, "plain", unix.S_IFREG|0o751, 0o755, 999, 0) // what is written to loses its set-user-ID bit
}

func mustOpen(t testing.TB, c *client, node uint64) uint64 {
	t.Helper()
	st, out := c.open(node, unix.O_RDWR)
	wants(t, "open", st, fuse.OK)
	return out.Fh
}

// TestNoPrivilege: CVE-2022-0358 and test 8 of the faults: the host's file never gains a bit or an owner that it should not.
func TestNoPrivilege(t *testing.T) {
	f := serve(t, Config{})
	c := f.client(t)
	c.uid, c.gid = 0, 0
	root := c.root(t, "s")
	for _, kind := range []uint32{unix.S_IFCHR, unix.S_IFBLK} {
		wants(t, "mknod of a device", c.mknod(root, "dev", kind|0o666, 0x103), fuse.EPERM)
	}
	st, e := c.create(root, "x", unix.O_RDWR, 0o7777)
	wants(t, "create", st, fuse.OK)
	for _, mode := range []uint32{0o6777, 0o2711, 0o4755, 0o1777} {
		st, _ = c.chmod(e.NodeId, mode)
		wants(t, "chmod", st, fuse.OK)
		if h := hostStat(t, f.root+"/x"); h.Mode&(0o7000|0o022) != 0 {
			t.Errorf("after chmod %o the host has %o", mode, h.Mode)
		}
	}
	for _, name := range []string{"security.capability", "trusted.x", "system.posix_acl_access", "security.selinux"} {
		wants(t, "setxattr "+name, c.setxattr(e.NodeId, name, "x"), fuse.ENOTSUP)
		st, _ := c.getxattr(e.NodeId, name)
		wants(t, "getxattr "+name, st, fuse.ENOTSUP)
	}
	wants(t, "setxattr", c.setxattr(e.NodeId, "user.x", "value"), fuse.OK)
	if st, got := c.getxattr(e.NodeId, "user.x"); got != "value" {
		t.Errorf("user.x is %q, %v", got, st)
	}
	// A file made in a set-group-ID directory that a group member which is not in it may execute.
	st, d := c.mkdir(root, "d", 0o2777)
	wants(t, "mkdir", st, fuse.OK)
	c.chown(d.NodeId, 0, 50)
	c.chmod(d.NodeId, 0o2777)
	c.uid, c.gid = 1000, 1000
	st, g := c.create(d.NodeId, "g", unix.O_RDWR, 0o2755)
	wants(t, "create", st, fuse.OK)
	if g.Mode&unix.S_ISGID != 0 || g.Gid != 50 {
		t.Errorf("a file in a set-group-ID directory has %o, group %d", g.Mode, g.Gid)
	}
	st, sub := c.mkdir(d.NodeId, "sub", 0o755)
	wants(t, "mkdir", st, fuse.OK)
	if sub.Mode&unix.S_ISGID == 0 || sub.Gid != 50 {
		t.Errorf("a directory in a set-group-ID directory has %o, group %d", sub.Mode, sub.Gid)
	}
	must(t, filepath.Walk(f.root, func(p string, info os.FileInfo, err error) error {
		if h := hostStat(t, p); h.Mode&0o7022 != 0 || h.Uid != uint32(os.Geteuid()) || h.Gid != uint32(os.Getegid()) {
			t.Errorf("%s is %o of %d:%d on the host", p, h.Mode, h.Uid, h.Gid)
		}
		return err
	}))
}

func TestHidden(t *testing.T) {
	own := filepath.Join(t.TempDir(), "own")
	must(t, os.Mkdir(own, 0o700))
	f := serve(t, Config{Hidden: []string{own}}, []Share{}...)
	home := filepath.Join(filepath.Dir(f.root), "home")
	for _, p := range []string{".ssh", ".config/gcloud", ".config/app", "sub", ".coracle"} {
		must(t, os.MkdirAll(filepath.Join(home, p), 0o755))
	}
	write(t, home+"/.netrc", "secret")
	t.Setenv("HOME", home)
	must(t, os.Remove(own), os.Rename(home+"/.coracle", own), os.Rename(own, home+"/.coracle"), os.Symlink(home+"/.coracle", own))
	must(t, f.SetShares([]Share{{Tag: "home", Path: home}, {Tag: "all", Path: home, Secrets: true},
		{Tag: "up", Path: filepath.Dir(home)}, {Tag: "config", Path: home + "/.config"}}))
	c := f.client(t)
	root := c.root(t, "home")
	_, config := c.lookup(root, ".config")
	for _, name := range []string{".ssh", ".SSH", ".netrc", ".coracle"} {
		st, _ := c.lookup(root, name)
		wants(t, name, st, fuse.ENOENT)
	}
	for _, plus := range []bool{false, true} {
		st, names := c.list(root, plus, 4096)
		slices.Sort(names)
		if diff := cmp.Diff([]string{".config", "sub"}, names); st != fuse.OK || diff != "" {
			t.Errorf("listing (plus %v): %v %s", plus, st, diff)
		}
	}
	st, _ := c.mkdir(root, ".docker", 0o755)
	wants(t, "mkdir of a name that is hidden in the home", st, fuse.EACCES)
	st, _ = c.mkdir(config.NodeId, ".docker", 0o755)
	wants(t, "mkdir of the same elsewhere", st, fuse.OK)
	st, _ = c.mkdir(root, ".aws", 0o755)
	wants(t, "mkdir of a hidden name", st, fuse.EACCES)
	st, _ = c.create(root, ".netrc", unix.O_RDWR, 0o600)
	wants(t, "create of a hidden name", st, fuse.EACCES)
	wants(t, "rename to a hidden name", c.rename(root, "sub", root, ".ssh", 0), fuse.EACCES)
	wants(t, "rename of a hidden name", c.rename(root, ".ssh", root, "ssh", 0), fuse.EACCES)
	wants(t, "exchange with what is ours", c.rename(root, "sub", root, ".coracle", unix.RENAME_EXCHANGE), fuse.EACCES)
	wants(t, "rename of what holds a secret", c.rename(root, ".config", root, "c", 0), fuse.EACCES)
	wants(t, "exchange with what holds a secret", c.rename(root, "sub", root, ".config", unix.RENAME_EXCHANGE), fuse.EACCES)
	st, _ = c.lookup(config.NodeId, "gcloud")
	wants(t, "a secret further down", st, fuse.ENOENT)
	st, _ = c.lookup(config.NodeId, "app")
	wants(t, "its neighbour", st, fuse.OK)
	st, _ = c.lookup(c.root(t, "config"), "gcloud")
	wants(t, "a secret at the root of another share", st, fuse.ENOENT)
	_, below := c.lookup(c.root(t, "up"), "home")
	st, _ = c.lookup(below.NodeId, ".ssh")
	wants(t, "a secret of the user's home below a share", st, fuse.ENOENT)
	st, _ = c.lookup(c.root(t, "all"), ".ssh")
	wants(t, "a secret that is shared on purpose", st, fuse.OK)
	st, _ = c.lookup(c.root(t, "all"), ".coracle")
	wants(t, "what is ours, nevertheless", st, fuse.ENOENT)
	for _, bad := range []string{home + "/.coracle", "/proc/self", "/sys", "relative"} {
		if err := f.SetShares([]Share{{Tag: "x", Path: bad}}); err == nil {
			t.Errorf("%s can be shared", bad)
		}
	}
}

func TestReadOnly(t *testing.T) {
	f := serve(t, Config{}, []Share{}...)
	write(t, f.root+"/a", "content")
	must(t, f.SetShares([]Share{{Tag: "s", Path: f.root, ReadOnly: true}, {Tag: "w", Path: f.root}}))
	c := f.client(t)
	root, other := c.root(t, "s"), c.root(t, "w")
	_, a := c.lookup(root, "a")
	st, _ := c.open(a.NodeId, unix.O_RDONLY)
	wants(t, "open to read", st, fuse.OK)
	_, wa := c.lookup(other, "a")
	if a.NodeId == wa.NodeId {
		t.Fatal("a file is the same through a share that is read-only and one that is not")
	}
	var got []fuse.Status
	for _, flags := range []uint32{unix.O_WRONLY, unix.O_RDWR, unix.O_TRUNC} {
		st, _ := c.open(a.NodeId, flags)
		got = append(got, st)
	}
	st, _ = c.create(root, "b", unix.O_RDWR, 0o644)
	got = append(got, st)
	st, _ = c.mkdir(root, "b", 0o755)
	got = append(got, st)
	st, _ = c.symlink(root, "x", "b")
	got = append(got, st, c.mknod(root, "b", unix.S_IFIFO, 0), c.unlink(root, "a"), c.rmdir(root, "a"),
		c.rename(root, "a", root, "b", 0), c.link(a.NodeId, root, "b"), c.setxattr(a.NodeId, "user.x", "y"))
	st, _ = c.chmod(a.NodeId, 0o777)
	got = append(got, st)
	st, _ = c.chown(a.NodeId, 1, 1)
	got = append(got, st)
	st, _ = c.tmpfile(root)
	got = append(got, st)
	for i, st := range got {
		if st != fuse.EROFS {
			t.Errorf("change %d: %v", i, st)
		}
	}
	wants(t, "link from one share to another", c.link(a.NodeId, other, "b"), fuse.EXDEV)
	wants(t, "rename from one share to another", c.rename(other, "a", root, "b", 0), fuse.EROFS)
	reads(t, f.root+"/a", "content")
}

// TestConfinement: whatever the guest names, it does not get out.
func TestConfinement(t *testing.T) {
	f := serve(t, Config{})
	outside := filepath.Dir(f.root)
	write(t, outside+"/canary", "untouched")
	must(t, os.Symlink(outside+"/canary", f.root+"/file"), os.Symlink("..", f.root+"/up"), os.Symlink("/", f.root+"/top"))
	c := f.client(t)
	root := c.root(t, "s")
	for _, name := range []string{"..", ".", "../canary", "up/canary", "/etc/passwd", "", "a/../../canary"} {
		if st, _ := c.lookup(root, name); st == fuse.OK {
			t.Errorf("lookup of %q: %v", name, st)
		}
		if st, _ := c.create(root, name, unix.O_RDWR, 0o644); st == fuse.OK {
			t.Errorf("create of %q: %v", name, st)
		}
	}
	for _, name := range []string{"file", "up", "top"} {
		st, l := c.lookup(root, name)
		wants(t, name, st, fuse.OK)
		if l.Mode&unix.S_IFMT != unix.S_IFLNK {
			t.Errorf("%s is shown as %o", name, l.Mode)
		}
		for _, inside := range []string{"canary", "etc", "share"} {
			if st, _ := c.lookup(l.NodeId, inside); st == fuse.OK {
				t.Errorf("lookup of %s in %s: %v", inside, name, st)
			}
		}
		if st, _ := c.open(l.NodeId, unix.O_RDWR); st == fuse.OK {
			t.Errorf("open of %s: %v", name, st)
		}
		if st, _ := c.setattr(l.NodeId, fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE}}); st == fuse.OK {
			t.Errorf("truncate of %s: %v", name, st)
		}
		c.chmod(l.NodeId, 0o777)
	}
	if st, out := c.create(root, "file", unix.O_RDWR|unix.O_TRUNC, 0o644); st == fuse.OK {
		c.write(out.NodeId, out.Fh, "overwritten")
		t.Error("create went through a symlink")
	}
	reads(t, outside+"/canary", "untouched")
	if h := hostStat(t, outside+"/canary"); h.Mode&0o777 != 0o644 {
		t.Errorf("the canary has mode %o", h.Mode)
	}
	wants(t, "an unknown node", first(c.getattr(1<<40)), estale)
	st, _ := c.read(root, 12345, 10)
	wants(t, "an unknown handle", st, fuse.EBADF)
}

func first[A, B any](a A, _ B) A { return a }

// TestUnlinkedOpen: CVE-2026-77179: a file that has lost its name is reached through what is open of it, and never by its old
// path, where a symlink may lie by now.
func TestUnlinkedOpen(t *testing.T) {
	f := serve(t, Config{})
	outside := filepath.Dir(f.root) + "/canary"
	write(t, outside, "untouched")
	c := f.client(t)
	root := c.root(t, "s")
	st, e := c.create(root, "x", unix.O_RDWR, 0o600)
	wants(t, "create", st, fuse.OK)
	wants(t, "write", c.write(e.NodeId, e.Fh, "mine"), fuse.OK)
	wants(t, "unlink", c.unlink(root, "x"), fuse.OK)
	must(t, os.Symlink(outside, f.root+"/x"))
	st, again := c.open(e.NodeId, unix.O_RDWR)
	wants(t, "open without a name", st, fuse.OK)
	if st, got := c.read(e.NodeId, again.Fh, 100); got != "mine" {
		t.Errorf("read %q, %v", got, st)
	}
	in := fuse.SetAttrIn{}
	in.Valid, in.Size = fuse.FATTR_SIZE, 2
	st, out := c.setattr(e.NodeId, in)
	wants(t, "truncate without a name", st, fuse.OK)
	if out.Size != 2 || out.Nlink != 0 {
		t.Errorf("size %d, links %d", out.Size, out.Nlink)
	}
	st, _ = c.chmod(e.NodeId, 0o777)
	wants(t, "chmod without a name", st, fuse.OK)
	wants(t, "setxattr without a name", c.setxattr(e.NodeId, "user.x", "y"), fuse.OK)
	c.release(e.NodeId, e.Fh)
	c.release(e.NodeId, again.Fh)
	st, _ = c.open(e.NodeId, unix.O_RDWR)
	wants(t, "open when it is gone", st, estale)
	reads(t, outside, "untouched")
	if records := len(f.owners.records); records != 0 {
		t.Errorf("%d records are left of files that are gone", records)
	}
}

func TestSetShares(t *testing.T) {
	f := serve(t, Config{})
	write(t, f.root+"/a", "x")
	c := f.client(t)
	root := c.root(t, "s")
	_, a := c.lookup(root, "a")
	fh := mustOpen(t, c, a.NodeId)
	must(t, f.SetShares([]Share{{Tag: "s", Path: f.root}, {Tag: "t", Path: f.root}}))
	if st, got := c.read(a.NodeId, fh, 1); got != "x" {
		t.Fatalf("after a share was added: %q, %v", got, st)
	}
	must(t, f.SetShares([]Share{{Tag: "t", Path: f.root}}))
	st, _ := c.read(a.NodeId, fh, 1)
	wants(t, "read of a withdrawn share", st, fuse.EBADF)
	for _, n := range []uint64{root, a.NodeId} {
		wants(t, "getattr of a withdrawn share", first(c.getattr(n)), estale)
	}
	st, _ = c.lookup(fuse.FUSE_ROOT_ID, "s")
	wants(t, "lookup of a withdrawn share", st, fuse.ENOENT)
	if _, names := c.list(fuse.FUSE_ROOT_ID, false, 4096); !slices.Equal(names, []string{"t"}) {
		t.Errorf("shares are %q", names)
	}
	err := f.SetShares([]Share{{Tag: "t", Path: f.root}, {Tag: "u", Path: "/no/such"}, {Tag: "T", Path: f.root}})
	if err == nil || !strings.Contains(err.Error(), "/no/such") || !strings.Contains(err.Error(), `"T"`) {
		t.Errorf("error is %v", err)
	}
	c.root(t, "t")
	f.Reset()
	wants(t, "a request after a reset", first(c.getattr(1)), fuse.EIO)
	c = f.client(t)
	c.root(t, "t")
	if st, names := c.list(c.root(t, "t"), true, 512); !slices.Equal(names, []string{"a"}) {
		t.Errorf("%q, %v", names, st)
	}
	if n := len(f.tree.byID); n > 4 {
		t.Errorf("%d nodes are known", n)
	}
	if open, _ := os.ReadDir("/proc/self/fd"); len(open) > 40 {
		out, _ := exec.Command("ls", "-l", fmt.Sprintf("/proc/%d/fd", os.Getpid())).Output()
		t.Errorf("%d descriptors are open:\n%s", len(open), out)
	}
}

// TestForgets: the guest forgets all, and so does the server.
func TestForgets(t *testing.T) {
	f := serve(t, Config{})
	makeTree(t, f.root, 300)
	c := f.client(t)
	root := c.root(t, "s")
	count := map[uint64]uint64{}
	st, tree := c.lookup(root, "tree")
	wants(t, "lookup", st, fuse.OK)
	count[tree.NodeId]++
	for _, d := range []string{"000", "001", "002"} {
		_, dir := c.lookup(tree.NodeId, d)
		count[dir.NodeId]++
		for i := range 100 {
			for range 2 {
				_, e := c.lookup(dir.NodeId, fmt.Sprintf("%02d", i))
				count[e.NodeId]++
			}
		}
	}
	if len(f.tree.byID) != 2+1+3+300 {
		t.Fatalf("%d nodes", len(f.tree.byID))
	}
	for n, k := range count {
		c.forget(n, k)
		c.forget(n, 1000) // more than there is
	}
	if len(f.tree.byID) != 2+1 || len(f.tree.byKey) != 1+1 {
		t.Fatalf("%d nodes are left", len(f.tree.byID)) // the root keeps what was told of its entries
	}
}
