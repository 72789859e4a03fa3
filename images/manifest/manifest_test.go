package manifest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sample(change func(*Manifest)) []byte {
	sum := strings.Repeat("0a", 32)
	m := Manifest{Format: Format, Version: "1", Arch: "amd64", KernelName: "6.1", Files: []File{
		{Name: Kernel, Size: 1, SHA256: sum}, {Name: Initrd, Size: 2, SHA256: sum}, {Name: Root, Size: 3, SHA256: sum},
	}, Components: []Component{{Name: "bash", Version: "5", License: "GPL-3.0-or-later", Kind: "deb", SHA256: sum}}}
	change(&m)
	data, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return data
}

func TestParse(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	add := func(f File) func(*Manifest) { return func(m *Manifest) { m.Files = append(m.Files, f) } }
	for _, test := range []struct {
		name   string
		change func(*Manifest)
		err    string
	}{
		{"good", func(*Manifest) {}, ""},
		{"another file", add(File{Name: KernelELF, Size: 1, SHA256: sum}), ""},
		{"format", func(m *Manifest) { m.Format = 2 }, "has format 2, this program reads 1"},
		{"no version", func(m *Manifest) { m.Version = "" }, "names no version"},
		{"no architecture", func(m *Manifest) { m.Arch = "" }, "names no version or architecture"},
		{"no root", func(m *Manifest) { m.Files = m.Files[:2] }, "does not cover root.erofs"},
		{"twice", add(File{Name: Root, Size: 1, SHA256: sum}), `bad entry for file "root.erofs"`},
		{"path", add(File{Name: "a/b", Size: 1, SHA256: sum}), `bad entry for file "a/b"`},
		{"Windows path", add(File{Name: `a\b`, Size: 1, SHA256: sum}), "bad entry"},
		{"drive", add(File{Name: "c:b", Size: 1, SHA256: sum}), "bad entry"},
		{"upward", add(File{Name: "..", Size: 1, SHA256: sum}), "bad entry"},
		{"hidden", add(File{Name: ".x", Size: 1, SHA256: sum}), "bad entry"},
		{"capital", add(File{Name: "VMLINUZ", Size: 1, SHA256: sum}), "bad entry"},
		{"itself", add(File{Name: Name, Size: 1, SHA256: sum}), "bad entry"},
		{"empty", add(File{Name: "x", Size: 0, SHA256: sum}), "bad entry"},
		{"negative", add(File{Name: "x", Size: -1, SHA256: sum}), "bad entry"},
		{"short digest", add(File{Name: "x", Size: 1, SHA256: "0a"}), "bad entry"},
		{"capital digest", add(File{Name: "x", Size: 1, SHA256: strings.ToUpper(sum)}), "bad entry"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse(sample(test.change))
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error is %v: want one with %q", err, test.err)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := Load(dir); !os.IsNotExist(err) {
		t.Errorf("nothing there: error is %v", err)
	}
	file := filepath.Join(dir, Name)
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "parse "+file) {
		t.Errorf("half a manifest: error is %v", err)
	}
	if err := os.WriteFile(file, sample(func(*Manifest) {}), 0o600); err != nil {
		t.Fatal(err)
	}
	m, digest, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	f, err := Measure(dir, Name)
	if err != nil || f.SHA256 != digest || m.Version != "1" {
		t.Errorf("digest is %s: want %s, error %v", digest, f.SHA256, err)
	}
}

func TestVerify(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, Root)
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("root")
	f, err := Measure(dir, Root)
	if err != nil {
		t.Fatal(err)
	}
	want := File{Name: Root, Size: 4, SHA256: "4813494d137e1631bba301d5acab6e7bb7aa74ce1185d456565ef51d737677b2"}
	if diff := cmp.Diff(want, f); diff != "" {
		t.Errorf("measured (-want +got):\n%s", diff)
	}
	if err := f.Verify(dir); err != nil {
		t.Error(err)
	}
	write("rot")
	if err := f.Verify(dir); err == nil || !strings.Contains(err.Error(), "has 3 bytes: want 4") {
		t.Errorf("truncated: error is %v", err)
	}
	write("r00t")
	if err := f.Verify(dir); err == nil || !strings.Contains(err.Error(), "has digest") {
		t.Errorf("corrupt: error is %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample(func(*Manifest) {}))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data)
		if err != nil {
			return
		}
		for _, file := range m.Files {
			if strings.ContainsAny(file.Name, "/\\:") || strings.HasPrefix(file.Name, ".") || file.Size <= 0 {
				t.Errorf("%q is taken", file.Name)
			}
		}
	})
}
