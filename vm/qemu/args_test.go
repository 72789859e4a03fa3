//go:build linux

package qemu

import (
	"context"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/vm"
)

var update = flag.Bool("update", false, "write the golden files anew")

// noFiles is a vm.FileSystem that is never asked.
type noFiles struct{}

func (noFiles) Serve(in, out [][]byte) int { return 0 }
func (noFiles) Reset()                     {}

func TestArgs(t *testing.T) {
	plain := vm.Config{
		Name: "default", CPUs: 4, Memory: 4 << 30, Kernel: "/i/vmlinuz", Initrd: "/m/run/initrd", Cmdline: "quiet",
		Disks: []vm.Disk{
			{Path: "/i/root.erofs", Serial: "coracle-root", ReadOnly: true},
			{Path: "/m/data.img", Serial: "coracle-data"},
		},
		Network: vm.Network{MAC: "52:54:00:12:34:56"}, RunDir: "/m/run", Console: "/m/console.log",
	}
	odd := plain
	odd.Name = "a,process=evil"
	odd.Kernel = "/ho me/a,b/vmlinuz"
	odd.Disks = []vm.Disk{{Path: `/ho me/x,y=z/,file.locking=off,"$(reboot)"`, Serial: "s,share-rw=on"}}
	odd.Console = "/c,append=off"
	odd.Network.MAC = ""
	share := plain
	share.FileSystem, share.FileSystemTag = noFiles{}, "coracle"
	share.Network.Frames = func(context.Context, net.Conn) error { return nil }
	share.Network.MTU = 65520
	odder := share
	odder.CPUs, odder.FileSystemTag, odder.Network = 100, "a,tag=b", vm.Network{Frames: share.Network.Frames, MTU: 1500}
	bare := vm.Config{Name: "bare", CPUs: 1, Memory: 64 << 20, Kernel: "k", Initrd: "i"}
	for name, l := range map[string]launch{
		"amd64-kvm": {cfg: plain, arch: "amd64", accel: kvm, monitor: 3, vsock: 4},
		"amd64-tcg": {cfg: plain, arch: "amd64", accel: tcg, monitor: 3, vsock: 4},
		"old-qemu":  {cfg: plain, arch: "amd64", accel: tcg, oneThread: true, monitor: 3, vsock: 4},
		"arm64-kvm": {cfg: plain, arch: "arm64", accel: kvm, monitor: 3, vsock: 4},
		"arm64-tcg": {cfg: plain, arch: "arm64", accel: tcg, monitor: 3, vsock: 4},
		"odd-names": {cfg: odd, arch: "amd64", accel: tcg, monitor: 3, vsock: 4},
		"share":     {cfg: share, arch: "amd64", accel: kvm, monitor: 3, vsock: 4, files: 5, cable: 6},
		"odd-share": {cfg: odder, arch: "arm64", accel: tcg, monitor: 3, vsock: 4, files: 5, cable: 6},
		"bare":      {cfg: bare, arch: "amd64", accel: kvm, monitor: 3, vsock: 4},
	} {
		t.Run(name, func(t *testing.T) {
			// One option a line, its value beside it.
			got := strings.ReplaceAll(strings.Join(l.args(), "\n"), "\n-", "\x00-")
			got = strings.ReplaceAll(strings.ReplaceAll(got, "\n", " "), "\x00", "\n") + "\n"
			golden := filepath.Join("testdata", name+".args")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), got); d != "" {
				t.Errorf("command line (-want +got; go test -update writes it anew):\n%s", d)
			}
		})
	}
}
