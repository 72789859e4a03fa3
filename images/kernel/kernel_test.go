package kernel

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/coracle-engine/coracle/images/debian"
	"github.com/coracle-engine/coracle/images/elftest"
	"github.com/coracle-engine/coracle/images/tree"
)

// fake is a kernel of modules that need others.
func fake(needs map[string]string, soft map[string]string) func(string) (Module, error) {
	return func(name string) (Module, error) {
		deps, ok := needs[name]
		if !ok {
			return Module{}, errNoModule
		}
		return Module{Name: name, depends: strings.Fields(deps), soft: strings.Fields(soft[name])}, nil
	}
}

func lines(all []Module) []string {
	var out []string
	for _, m := range all {
		out = append(out, strings.Join(append([]string{m.Name, m.Class.String()}, m.Needs...), " "))
	}
	return out
}

func TestResolve(t *testing.T) {
	needs := map[string]string{
		"erofs": "crc", "crc": "", "bridge": "stp llc", "stp": "llc", "llc": "", "br_netfilter": "bridge",
		"vxlan": "udp", "udp": "", "wg": "udp crypto", "crypto": "", "loop_a": "loop_b", "loop_b": "loop_a", "bad": "gone",
	}
	soft := map[string]string{"erofs": "crypto_crc32c", "vxlan": "crypto"}
	builtin := map[string]bool{"virtio_pci": true}
	for _, test := range []struct {
		name string
		list []want
		out  []string
		err  string
	}{
		{name: "dependencies first, each once", list: []want{{class: Boot, names: "br_netfilter bridge"}},
			out: []string{"llc boot", "stp boot llc", "bridge boot llc stp", "br_netfilter boot llc stp bridge"}},
		{name: "built in", list: []want{{class: Root, names: "virtio_pci"}}},
		{name: "soft dependency that is an alias", list: []want{{class: Root, names: "erofs"}}, out: []string{"crc root", "erofs root crc"}},
		{name: "soft dependency that is a module", list: []want{{class: Demand, names: "vxlan"}},
			out: []string{"udp demand", "crypto demand", "vxlan demand udp crypto"}},
		{name: "the strongest class wins, later too", list: []want{{class: Demand, names: "vxlan"}, {class: Boot, names: "wg"}},
			out: []string{"udp boot", "crypto boot", "vxlan demand udp crypto", "wg boot udp crypto"}},
		{name: "a module that is wanted again and stronger", list: []want{{class: Demand, names: "bridge"}, {class: Root, names: "stp"}},
			out: []string{"llc root", "stp root llc", "bridge demand llc stp"}},
		{name: "one architecture's", list: []want{{class: Boot, names: "gone", only: "arm64"}}},
		{name: "unknown", list: []want{{class: Boot, names: "gone", why: "reason"}}, err: "module gone: no such module (wanted for: reason)"},
		{name: "unknown beneath", list: []want{{class: Boot, names: "bad"}}, err: "module gone: no such module"},
		{name: "circle", list: []want{{class: Boot, names: "loop_a"}}, err: "needs itself, by way of loop_a, loop_b"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := resolve(test.list, "amd64", builtin, fake(needs, soft))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error is %v: want one with %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.out, lines(got)); diff != "" {
				t.Errorf("modules (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWantedIsSane(t *testing.T) {
	seen := map[string]bool{}
	last := Root
	for _, w := range wanted {
		if w.class < last {
			t.Errorf("group %q stands after a weaker class", w.names)
		}
		last = w.class
		if w.why == "" {
			t.Errorf("group %q has no reason", w.names)
		}
		for name := range strings.FieldsSeq(w.names) {
			if seen[name] || strings.Contains(name, "-") {
				t.Errorf("module %s is listed twice or has a hyphen", name)
			}
			seen[name] = true
		}
	}
	for _, name := range []string{"9p", "9pnet_virtio", "btrfs", "zfs"} {
		if seen[name] {
			t.Errorf("%s is wanted: the image promises not to have it", name)
		}
	}
}

func module(info ...string) tree.Content {
	return tree.Bytes(elftest.File("", elftest.Section{Name: ".modinfo", Type: elf.SHT_PROGBITS, Data: []byte(strings.Join(info, "\x00") + "\x00")}))
}

// pack makes a package of a kernel for amd64 with plain modules. The list of what is wanted is the real one, so everything
// in it is built in but for a few.
func pack(t *testing.T) *debian.Package {
	t.Helper()
	const release, prefix = "6.1-x", "usr/lib/modules/6.1-x/"
	modules := map[string]tree.Content{
		"kernel/fs/erofs/erofs.ko":            module("license=GPL", "depends=libcrc32c", "alias=fs-erofs", "name=erofs"),
		"kernel/lib/libcrc32c.ko":             module("depends=", "softdep=pre: crc32c"),
		"kernel/drivers/virtio/virtio-rng.ko": module("alias=virtio:d00000004v*", "depends="),
	}
	p := &debian.Package{Locked: debian.Locked{Name: "linux-image-6.1-x"}, Nodes: map[string]tree.Node{}}
	for name, c := range modules {
		p.Nodes[prefix+name] = tree.Node{Mode: 0o644, Content: c}
	}
	var builtin bytes.Buffer
	for _, w := range wanted {
		for name := range strings.FieldsSeq(w.names) {
			if name != "erofs" && name != "virtio_rng" {
				builtin.WriteString("kernel/x/" + name + ".ko\n")
			}
		}
	}
	p.Nodes[prefix+"modules.builtin"] = tree.Node{Mode: 0o644, Content: tree.Bytes(builtin.Bytes())}
	p.Nodes["boot/vmlinuz-"+release] = tree.Node{Mode: 0o644, Content: tree.Bytes(bzImage(t, vmlinux()))}
	return p
}

func TestLoadAndInstall(t *testing.T) {
	k, err := Load(context.Background(), pack(t), "amd64", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	read := func(tr *tree.Tree, name string) string {
		n, ok := tr.Get("usr/lib/modules/6.1-x/" + name)
		if !ok {
			return "missing"
		}
		data, err := n.Content.ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(data), "\n")
		return rest
	}
	const early = "libcrc32c root /lib/modules/6.1-x/kernel/lib/libcrc32c.ko\n" +
		"erofs root /lib/modules/6.1-x/kernel/fs/erofs/erofs.ko libcrc32c\n"
	var root, initrd tree.Tree
	if err := k.Install(&root, Demand); err != nil {
		t.Fatal(err)
	}
	if err := k.Install(&initrd, Vsock); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(early, read(&initrd, "modules.coracle")); diff != "" {
		t.Errorf("initramfs's list (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(early+"virtio_rng boot /lib/modules/6.1-x/kernel/drivers/virtio/virtio-rng.ko\n", read(&root, "modules.coracle")); diff != "" {
		t.Errorf("root's list (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("alias fs-erofs erofs\nalias virtio:d00000004v* virtio_rng\n", read(&root, "modules.alias")); diff != "" {
		t.Errorf("root's aliases (-want +got):\n%s", diff)
	}
	if _, ok := initrd.Get("usr/lib/modules/6.1-x/kernel/drivers/virtio/virtio-rng.ko"); ok {
		t.Error("the initramfs has a module of class boot")
	}
	if diff := cmp.Diff([]string{"erofs", "libcrc32c"}, k.Names(Root)); diff != "" {
		t.Error(diff)
	}
}

// vmlinux is an ELF file with the note of a PVH entry.
func vmlinux() []byte {
	data := elftest.File("note", elftest.Section{Name: ".x", Type: elf.SHT_PROGBITS, Data: make([]byte, 4096)})
	note := append([]byte{4, 0, 0, 0, 8, 0, 0, 0}, pvhNote...)
	at := len(data)
	data = append(data, append(note, make([]byte, 8)...)...)
	binary.LittleEndian.PutUint32(data[64:], uint32(elf.PT_NOTE)) // the program header follows the file's
	binary.LittleEndian.PutUint64(data[64+8:], uint64(at))
	binary.LittleEndian.PutUint64(data[64+32:], uint64(len(data)-at))
	return data
}

func bzImage(t testing.TB, kernel []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	payload := binary.LittleEndian.AppendUint32(w.EncodeAll(kernel, nil), uint32(len(kernel)))
	out := make([]byte, 2*512+0x40)
	out[setupSects] = 1
	copy(out[setupMagic:], "HdrS")
	binary.LittleEndian.PutUint32(out[payloadOffset:], 0x40)
	binary.LittleEndian.PutUint32(out[payloadLength:], uint32(len(payload)))
	return append(out, payload...)
}

func TestBootable(t *testing.T) {
	image := make([]byte, 4096)
	copy(image[56:], "ARM\x64")
	plain := bytes.Replace(vmlinux(), pvhNote, []byte("xxxxxxxx"), 1)
	cut := bzImage(t, vmlinux())
	for _, test := range []struct {
		name, arch string
		data       []byte
		err        string
	}{
		{"bzImage", "amd64", bzImage(t, vmlinux()), ""},
		{"bzImage without PVH", "amd64", bzImage(t, plain), "no PVH entry"},
		{"bzImage cut off", "amd64", cut[:len(cut)-10], "outside of it"},
		{"bzImage of something else", "amd64", bzImage(t, []byte("hello")), "read what is in it"},
		{"Image", "arm64", image, ""},
		{"Image for amd64", "amd64", image, "no bzImage"},
		{"bzImage for arm64", "arm64", bzImage(t, vmlinux()), "no uncompressed arm64 Image"},
		{"EFI zboot", "arm64", append([]byte("MZ\x00\x00zimg"), make([]byte, 100)...), "no uncompressed arm64 Image"},
		{"empty", "amd64", nil, "no bzImage"},
		{"another architecture", "riscv64", image, "no kernel format"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, unpacked, err := bootable(tree.Bytes(test.data), test.arch)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("error is %v: want one with %q", err, test.err)
				}
				return
			}
			if err != nil || c.ID != tree.Bytes(test.data).ID {
				t.Errorf("error is %v, or the content has changed", err)
			}
			if (unpacked != nil) != (test.arch == "amd64") {
				t.Errorf("ELF file: %v", unpacked)
			}
		})
	}
}

func FuzzUnpackBzImage(f *testing.F) {
	f.Add(bzImage(f, vmlinux()))
	f.Add(make([]byte, setupEnd))
	f.Fuzz(func(t *testing.T, data []byte) {
		if out, err := unpackBzImage(data); err == nil && !bytes.HasPrefix(out, []byte(elf.ELFMAG)) {
			t.Errorf("%d bytes come out that are no ELF file", len(out))
		}
	})
}
