//go:build linux

package qemu

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/share"
	"github.com/coracle-engine/coracle/host/share/notify"
	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

// What is measured on each file system, in each round. With -short it is a twentieth, once.
var rounds, smallFiles, treeFiles, seqMiB = 3, 10_000, 50_000, 256

// store is a directory of the guest's that is measured.
type store struct {
	name string
	dir  string
}

// stores are, in one guest, the ways to keep files: on our server, as it is shipped; on QEMU's own virtiofsd, beside it on the
// same kind of device, with each of its two modes that let the guest remember; and on a disk of the guest's own.
var stores = []store{
	{"share", "/home/bench"}, {"virtiofsd-always", "/run/always"}, {"virtiofsd-auto", "/run/auto"}, {"ext4", "/run/ext4"},
}

// measure is one of those that e2e/toolbox prints.
type measure struct {
	name  string
	goal  string // what the share is held to
	limit float64
}

var measures = []measure{
	{"create", "virtiofsd", 1}, {"stat", "virtiofsd", 1}, {"stat-warm", "ext4", 1.1}, {"read", "virtiofsd", 1},
	{"read-warm", "virtiofsd", 1}, {"unlink", "virtiofsd", 1}, {"walk", "virtiofsd", 1}, {"walk-warm", "ext4", 1.1},
	{"write", "virtiofsd", 1}, {"seq-read", "virtiofsd", 1}, {"seq-read-warm", "ext4", 1.1},
}

// BenchmarkShare measures files of the host in a guest, beside two modes of virtiofsd and the guest's own disk: 10,000 files of
// 1 KiB made, looked at, read and removed, a tree of 50,000 walked, and 256 MiB written and read. The guest's program is
// e2e/toolbox, its caches are dropped before what is not called warm, and all take turns in one guest, so that whatever else
// the machine does falls on each. Figures are medians; a ratio below 1 says that the share is faster than the better of the two
// virtiofsd, or than ext4. The requests that reached our server in the last round are there for each piece of work.
func BenchmarkShare(b *testing.B) {
	if testing.Short() {
		rounds, smallFiles, treeFiles, seqMiB = 1, 500, 2_500, 16
	}
	m, requests := bootStores(b)
	took := map[string]map[string][]float64{} // by store and measure: ns a piece
	asked := map[string]string{}
	for round := range rounds {
		for i := range stores {
			s := stores[(round+i)%len(stores)]
			if took[s.name] == nil {
				took[s.name] = map[string][]float64{}
			}
			for _, words := range [][]string{
				{"small", s.dir, strconv.Itoa(smallFiles)}, {"walk", s.dir + "/tree"}, {"seq", s.dir, strconv.Itoa(seqMiB)},
			} {
				requests.clear()
				for name, ns := range toolbox(b, m, words...) {
					took[s.name][name] = append(took[s.name][name], ns)
				}
				if s.name == "share" {
					asked[words[0]] = requests.String()
				}
			}
		}
	}
	for words, counts := range asked {
		b.Logf("requests of %s: %s", words, counts)
	}
	for _, m := range measures {
		b.Run(m.name, func(b *testing.B) {
			report(b, m, took) // b.N counts nothing: it is measured above
		})
	}
}

// report tells what a measure gave.
func report(b *testing.B, m measure, took map[string]map[string][]float64) {
	median := func(store string) float64 {
		all := took[store][m.name]
		slices.Sort(all)
		return all[len(all)/2]
	}
	for _, s := range stores {
		if ns := median(s.name); slices.Contains([]string{"write", "seq-read", "seq-read-warm"}, m.name) {
			b.ReportMetric(1<<20/ns*1e3, s.name+"-MB/s")
		} else {
			b.ReportMetric(ns/1e3, s.name+"-µs")
		}
	}
	virtiofsd := min(median("virtiofsd-always"), median("virtiofsd-auto"))
	b.ReportMetric(median("share")/virtiofsd, "to-virtiofsd")
	b.ReportMetric(median("share")/median("ext4"), "to-ext4")
	b.ReportMetric(loadAverage(), "load")
	b.ReportMetric(0, "ns/op")
}

// toolbox runs e2e/toolbox in the guest and returns the figures that it prints.
func toolbox(b *testing.B, m vm.Machine, words ...string) map[string]float64 {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	out, err := vmtest.AskRun(ctx, m, append([]string{"/toolbox"}, words...)...)
	if err != nil {
		b.Fatalf("toolbox %s: %v", words, err)
	}
	figures := map[string]float64{}
	for lines := bufio.NewScanner(strings.NewReader(out)); lines.Scan(); {
		var name string
		var ns float64
		if n, _ := fmt.Sscan(lines.Text(), &name, &ns); n == 2 {
			figures[name] = ns
		}
	}
	b.Logf("%s: %s", words, strings.ReplaceAll(strings.TrimSpace(out), "\n", ", "))
	return figures
}

// bootStores boots a guest that has all stores, each with a tree in it.
func bootStores(b *testing.B) (*machine, *counter) {
	dir := imageDir(b, runtime.GOARCH)
	initrd := testInitrd(b, dir, runtime.GOARCH)
	addToolbox(b, initrd)
	tmp := b.TempDir()
	for _, name := range []string{"bench", "always", "auto", "ext4"} {
		plant(b, filepath.Join(tmp, name, "tree"))
	}
	disk := filepath.Join(tmp, "ext4.img")
	if out, err := exec.Command("mkfs.ext4", "-q", "-N", "200000", "-d", filepath.Join(tmp, "ext4"), disk, "2G").CombinedOutput(); err != nil {
		b.Fatalf("make a disk: %v: %s", err, out)
	}
	files := serveShare(b, filepath.Join(tmp, "bench"))
	requests := &counter{FileSystem: files}
	opened, err := New(vmtest.Logger(false), "").Open(b.Context(), vm.Config{
		Name: "bench", CPUs: 2, Memory: 2 << 30, Kernel: kernel(dir), Initrd: initrd, Console: filepath.Join(tmp, "console.log"),
		Disks:      []vm.Disk{{Path: filepath.Join(dir, "root.erofs"), Serial: "coracle-root", ReadOnly: true}, {Path: disk, Serial: "bench"}},
		FileSystem: requests, FileSystemTag: guestapi.ShareTag,
	})
	if err != nil {
		b.Fatal(err)
	}
	m := opened.(*machine)
	m.binary = withVirtiofsd(b, m.binary, tmp, "always", "auto")
	startGuest(b, m)
	if _, err := vmtest.AskRun(b.Context(), m, "share", "bench", "/home/bench"); err != nil {
		b.Fatal(err)
	}
	replay(b, m, files)
	toolbox(b, m, "mount", "virtiofs", "always", "/run/always")
	toolbox(b, m, "mount", "virtiofs", "auto", "/run/auto")
	toolbox(b, m, "mount", "ext4", "/dev/vdb", "/run/ext4")
	return m, requests
}

// plant makes the tree that is walked.
func plant(b *testing.B, dir string) {
	b.Helper()
	for i := range treeFiles {
		in := filepath.Join(dir, strconv.Itoa(i/50))
		if i%50 == 0 {
			if err := os.MkdirAll(in, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(in, "file-"+strconv.Itoa(i)), []byte("planted\n"), 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// addToolbox puts e2e/toolbox into the initramfs at path.
func addToolbox(b *testing.B, path string) {
	b.Helper()
	out := filepath.Join(b.TempDir(), "toolbox")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, "../../e2e/toolbox")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build the toolbox: %v\n%s", err, said)
	}
	program, err := os.ReadFile(out)
	if err != nil {
		b.Fatal(err)
	}
	initrd, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	all := bytes.NewBuffer(initrd)
	pad(all)
	member(all, "toolbox", 0o100755, program)
	member(all, "TRAILER!!!", 0, nil)
	if err := os.WriteFile(path, all.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
}

// serveShare makes our server of one directory, as the product does.
func serveShare(b *testing.B, dir string) *share.Server {
	b.Helper()
	watcher, err := notify.New()
	if err != nil {
		b.Fatal(err)
	}
	s, err := share.New(share.Config{Log: vmtest.Logger(false), Dir: b.TempDir(), Watcher: watcher})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := errors.Join(s.Close(), watcher.Close()); err != nil {
			b.Error(err)
		}
	})
	if err := s.SetShares([]share.Share{{Tag: "bench", Path: dir}}); err != nil {
		b.Fatal(err)
	}
	return s
}

// replay opens the streams by which files has the guest hear of the host's changes: without them it lets the guest remember
// nothing.
func replay(b *testing.B, m *machine, files *share.Server) {
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- files.Replay(ctx, func(ctx context.Context) (net.Conn, error) { return m.Dial(ctx, guestapi.PortReplay) })
	}()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			b.Error(err)
		}
	})
	time.Sleep(3 * time.Second) // nothing says that they are there
}

// withVirtiofsd starts a virtiofsd for each cache mode, which is the name of its directory in tmp and the tag of its device,
// and returns a program that is QEMU with these devices, like our own but that this virtiofsd knows no more than one queue.
func withVirtiofsd(b *testing.B, binary, tmp string, modes ...string) string {
	b.Helper()
	words := []string{"exec", binary, `"$@"`}
	for _, mode := range modes {
		socket := filepath.Join(tmp, mode+".sock")
		cmd := exec.Command("/usr/lib/qemu/virtiofsd", "-f", "--socket-path="+socket, "-o", "source="+filepath.Join(tmp, mode), "-o", "cache="+mode)
		if _, err := os.Stat(cmd.Path); err != nil {
			b.Skipf("%v: on Debian 12, apt install qemu-system-common", err)
		}
		var said bytes.Buffer
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
			if b.Failed() {
				b.Logf("virtiofsd %s: %s", mode, tailOf(said.Bytes()))
			}
		})
		for end := time.Now().Add(10 * time.Second); readable(socket) != nil && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		words = append(words, "-chardev", "socket,id="+mode+",path="+socket,
			"-device", "vhost-user-fs-pci,queue-size=1024,num-request-queues=1,chardev="+mode+",tag="+mode)
	}
	script := filepath.Join(tmp, "qemu")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"+strings.Join(words, " ")+"\n"), 0o755); err != nil {
		b.Fatal(err)
	}
	return script
}

func tailOf(b []byte) []byte { return b[max(0, len(b)-2000):] }

// counter counts the requests that a file system is asked, by their kind, and the time that it takes to answer them.
type counter struct {
	vm.FileSystem
	kinds, took [64]atomic.Int64
}

// kindNames are those of linux/fuse.h, enum fuse_opcode, that matter here.
var kindNames = map[int]string{
	1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 9: "MKDIR", 10: "UNLINK", 11: "RMDIR", 14: "OPEN", 15: "READ", 16: "WRITE",
	18: "RELEASE", 20: "FSYNC", 22: "GETXATTR", 25: "FLUSH", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 35: "CREATE",
	42: "BATCH_FORGET", 44: "READDIRPLUS", 52: "STATX",
}

func (c *counter) Serve(in, out [][]byte) int {
	if len(in) == 0 || len(in[0]) < 8 {
		return c.FileSystem.Serve(in, out)
	}
	kind := binary.NativeEndian.Uint32(in[0][4:]) % 64
	begin := time.Now()
	defer func() {
		c.kinds[kind].Add(1)
		c.took[kind].Add(time.Since(begin).Microseconds())
	}()
	return c.FileSystem.Serve(in, out)
}

func (c *counter) clear() {
	for i := range c.kinds {
		c.kinds[i].Store(0)
		c.took[i].Store(0)
	}
}

// String names the kinds with their counts and the server's mean time for one, the most frequent first.
func (c *counter) String() string {
	var kinds []int
	for i := range c.kinds {
		if c.kinds[i].Load() > 0 {
			kinds = append(kinds, i)
		}
	}
	slices.SortFunc(kinds, func(a, b int) int { return cmp.Compare(c.kinds[b].Load(), c.kinds[a].Load()) })
	var words []string
	for _, i := range kinds {
		words = append(words, fmt.Sprintf("%s %d (%d µs)", cmp.Or(kindNames[i], strconv.Itoa(i)), c.kinds[i].Load(), c.took[i].Load()/c.kinds[i].Load()))
	}
	return strings.Join(words, ", ")
}
