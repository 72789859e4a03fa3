//go:build linux

package boot

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/google/go-cmp/cmp"
)

func TestReadConfig(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, api.SecretLen))
	for name, c := range map[string]struct{ text, want string }{
		"good":          {`{"version":2,"secret":"` + secret + `","spec":{"hostname":"h"}}`, ""},
		"no JSON":       {`hello`, "parse boot configuration"},
		"empty":         {``, "parse boot configuration"},
		"other version": {`{"version":3,"secret":"` + secret + `"}`, "version 3"},
		"short secret":  {`{"version":2,"secret":"AAAA"}`, "3 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "boot.json")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			b, err := ReadConfig(path)
			switch {
			case c.want == "" && (err != nil || b.Spec.Hostname != "h"):
				t.Errorf("ReadConfig() = %v, %v", b, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("ReadConfig() = %v: want an error with %q", err, c.want)
			}
			if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
				t.Error("the file with the secret is still there")
			}
		})
	}
	if _, err := ReadConfig(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"version":2,"secret":"AAAA","spec":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if b, err := ParseConfig(data); err == nil && (b.Version != api.Version || len(b.Secret) != api.SecretLen) {
			t.Fatalf("accepted %+v", b)
		}
	})
}

const list = `# a kernel
virtio_blk root /m/virtio_blk.ko
netfs root /m/netfs.ko

erofs root /m/erofs.ko netfs
vsock vsock /m/vsock.ko
stp boot /m/stp.ko
llc boot /m/llc.ko
bridge boot /m/bridge.ko stp llc
br-netfilter boot /m/br_netfilter.ko bridge stp llc
`

func index(t *testing.T) *Index {
	t.Helper()
	x, err := ParseIndex(strings.NewReader(list))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestParseIndex(t *testing.T) {
	x := index(t)
	if diff := cmp.Diff([]string{"virtio_blk", "netfs", "erofs"}, x.Class(ClassRoot)); diff != "" {
		t.Error(diff)
	}
	if m := x.find("br-netfilter"); m == nil || m.Name != "br_netfilter" || len(m.Deps) != 3 {
		t.Errorf("br-netfilter is %+v", m)
	}
	for text, want := range map[string]string{
		"a root":                            "2 fields",
		"a root /a\na root /b":              "again",
		"a root /a b\nb root /b":            "not before it",
		strings.Repeat("x", 1<<20) + " a b": "token too long",
	} {
		if _, err := ParseIndex(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseIndex(%.40q) = %v: want an error with %q", text, err, want)
		}
	}
}

func FuzzParseIndex(f *testing.F) {
	f.Add(list)
	f.Fuzz(func(t *testing.T, text string) {
		x, err := ParseIndex(strings.NewReader(text))
		if err != nil {
			return
		}
		for i, m := range x.modules {
			for _, d := range m.Deps {
				if j, ok := x.byName[d]; !ok || j >= i {
					t.Fatalf("%s needs %s, which is not before it", m.Name, d)
				}
			}
		}
	})
}

// kernel is a fake that checks that a module's needs are there before it.
type kernel struct {
	mu     sync.Mutex
	loaded []string
	fail   string
	hold   map[string]chan struct{} // insertions that wait
}

func (k *kernel) insert(path string) error {
	if c := k.hold[path]; c != nil {
		<-c
	}
	if path == k.fail {
		return errors.New("bad module")
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.loaded = append(k.loaded, path)
	return nil
}

func TestLoader(t *testing.T) {
	x := index(t)
	ctx := t.Context()

	t.Run("needs first, each once", func(t *testing.T) {
		k := &kernel{}
		l := NewLoader(k.insert, 2)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				if err := l.Load(ctx, x, "br_netfilter", "bridge"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(k.loaded) != 4 || k.loaded[2] != "/m/bridge.ko" || k.loaded[3] != "/m/br_netfilter.ko" {
			t.Errorf("loaded %v", k.loaded)
		}
	})
	t.Run("independent ones side by side", func(t *testing.T) {
		stp := make(chan struct{})
		k := &kernel{hold: map[string]chan struct{}{"/m/stp.ko": stp}}
		l := NewLoader(func(path string) error {
			if path == "/m/llc.ko" {
				close(stp) // stp can only end while llc is being inserted
			}
			return k.insert(path)
		}, 2)
		if err := l.Load(ctx, x, "bridge"); err != nil {
			t.Error(err)
		}
	})
	t.Run("a failure keeps back only what needs it", func(t *testing.T) {
		k := &kernel{fail: "/m/stp.ko"}
		err := NewLoader(k.insert, 4).Load(ctx, x, x.Class(ClassBoot)...)
		if err == nil || !strings.Contains(err.Error(), "bad module") || !strings.Contains(err.Error(), "bridge: it needs") {
			t.Errorf("Load() = %v", err)
		}
		if diff := cmp.Diff([]string{"/m/llc.ko"}, k.loaded); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		if err := NewLoader(nil, 1).Load(ctx, x, "nothing"); err == nil {
			t.Error("an unknown module was loaded")
		}
	})
	t.Run("the context ends", func(t *testing.T) {
		hold := make(chan struct{})
		k := &kernel{hold: map[string]chan struct{}{"/m/vsock.ko": hold}}
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if err := NewLoader(k.insert, 1).Load(ctx, x, "vsock"); !errors.Is(err, context.Canceled) {
			t.Errorf("Load() = %v", err)
		}
		close(hold)
	})
}

func TestModprobe(t *testing.T) {
	for _, c := range []struct {
		args string
		want []string
	}{
		{"-q -- net-pf-40", []string{"net-pf-40"}},
		{"bridge param=1", []string{"bridge"}},
		{"-va nf_conntrack nf_conntrack_netlink", []string{"nf_conntrack", "nf_conntrack_netlink"}},
		{"--all a b", []string{"a", "b"}},
		{"", nil},
	} {
		if diff := cmp.Diff(c.want, modprobeNames(strings.Fields(c.args))); diff != "" {
			t.Errorf("modprobe %s: %s", c.args, diff)
		}
	}

	dir := t.TempDir()
	for name, text := range map[string]string{
		"modules.builtin": "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio-pci.ko\n",
		"modules.alias":   "# comment\nalias net-pf-40 vsock\nalias virtio:d00000013v* vsock\nalias pci:v00001AF4d*sv*sd*bc*sc*i* virtio-blk\nalias devname:vfio/* stp\nalias rtnl-link-bridge bridge\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string][]string{
		"bridge":                 {"/m/bridge.ko", "/m/llc.ko", "/m/stp.ko"},
		"br-netfilter":           {"/m/br_netfilter.ko", "/m/bridge.ko", "/m/llc.ko", "/m/stp.ko"},
		"net-pf-40":              {"/m/vsock.ko"},
		"virtio:d00000013v00001": {"/m/vsock.ko"},
		"pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00": {"/m/virtio_blk.ko"},
		"devname:vfio/vfio":   {"/m/stp.ko"},
		"rtnl_link_bridge":    {"/m/bridge.ko", "/m/llc.ko", "/m/stp.ko"},
		"virtio_pci":          nil,
		"ext4":                nil,
		"binfmt-464c unknown": nil,
	} {
		k := &kernel{}
		err := probe(t.Context(), dir, NewLoader(k.insert, 1), index(t), name)
		if unknown := strings.Contains(name, "unknown"); unknown != (err != nil) {
			t.Errorf("%s: %v", name, err)
		}
		slices.Sort(k.loaded)
		if diff := cmp.Diff(want, k.loaded); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestDiskBySerial(t *testing.T) {
	dir := t.TempDir()
	for name, serial := range map[string]string{"vda": "coracle-root", "vdb": "coracle-data\n", "vdc": ""} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "serial"), []byte(serial), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for serial, want := range map[string]string{api.SerialRoot: "vda", api.SerialData: "vdb", "coracle": ""} {
		if got := diskBySerial(dir, serial); got != want {
			t.Errorf("disk %s is %q: want %q", serial, got, want)
		}
	}
}

func TestImageVersion(t *testing.T) {
	if got := osRelease("NAME=x\nIMAGE_VERSION=\"0.1.0+abc\"\n", "IMAGE_VERSION"); got != "0.1.0+abc" {
		t.Errorf("version is %q", got)
	}
	if got := osRelease("NAME=x", "IMAGE_VERSION"); got != "" {
		t.Errorf("version is %q", got)
	}
}
