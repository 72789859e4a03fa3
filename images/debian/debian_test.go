package debian

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const deb822 = `# the archive
Types: deb
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb-src
URIs: http://mirror.example/debian
Suites: bookworm
Components: main

Types: deb
# a comment within
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://other.example/apt
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/other.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://docker.example/linux
Suites: bookworm
Components: stable
`

const oneLine = `# comment
deb http://mirror.example/debian bookworm main contrib # trailing
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://mirror.example/debian-security bookworm-security main
deb-src http://mirror.example/debian bookworm main
deb [signed-by=/x/other.gpg] http://other.example bookworm main
deb http://broken.example
`

func stanza(uri, suite string) string {
	return "Types: deb\nURIs: http://mirror.example/" + uri + "\nSuites: " + suite + "\nComponents: main\nSigned-By: " + keyring() + "\n\n"
}

func TestSources(t *testing.T) {
	for _, test := range []struct {
		name       string
		files      map[string]string
		have, want string
		out        string
		err        string
	}{
		{name: "deb822", files: map[string]string{"sources.list.d/debian.sources": deb822}, have: "bookworm", want: "trixie",
			out: stanza("debian", "trixie") + stanza("debian", "trixie-updates") + stanza("debian-security", "trixie-security")},
		{name: "one line", files: map[string]string{"sources.list": oneLine}, have: "bookworm", want: "trixie",
			out: stanza("debian", "trixie") + stanza("debian-security", "trixie-security")},
		{name: "both, each archive once", files: map[string]string{"sources.list": oneLine, "sources.list.d/x.sources": deb822},
			have: "bookworm", want: "trixie",
			out: stanza("debian", "trixie") + stanza("debian", "trixie-updates") + stanza("debian-security", "trixie-security")},
		{name: "the machine's own suite", files: map[string]string{"sources.list": strings.ReplaceAll(oneLine, "bookworm", "trixie")},
			have: "trixie", want: "trixie", out: stanza("debian", "trixie") + stanza("debian-security", "trixie-security")},
		{name: "a disabled file", files: map[string]string{"sources.list.d/debian.sources.off": deb822}, have: "bookworm",
			want: "trixie", err: "no entry"},
		{name: "another distribution", files: map[string]string{"sources.list": oneLine}, have: "noble", want: "trixie", err: "suite noble"},
		{name: "nothing", have: "bookworm", want: "trixie", err: "find Debian's archive"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range test.files {
				file := filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			out, err := Sources(dir, test.have, test.want)
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error is %v: want one with %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.out, string(out)); diff != "" {
				t.Errorf("sources (-want +got):\n%s", diff)
			}
		})
	}
}

func TestMachineSuite(t *testing.T) {
	for text, want := range map[string]string{
		"ID=debian\nVERSION_CODENAME=bookworm\n": "bookworm",
		"VERSION_CODENAME=\"trixie\"":            "trixie",
		"ID=arch\n":                              "",
		"VERSION_CODENAME=\n":                    "",
	} {
		got, err := MachineSuite([]byte(text))
		if got != want || (err == nil) != (want != "") {
			t.Errorf("MachineSuite(%q) = %q, %v", text, got, err)
		}
	}
}

func FuzzSources(f *testing.F) {
	f.Add([]byte(deb822))
	f.Add([]byte(oneLine))
	f.Add([]byte(" a\nb"))
	f.Add([]byte(":\n x\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, s := range append(parseDeb822(data), parseOneLine(data)...) {
			for line := range strings.Lines(string(rewrite([]source{s}, "bookworm", "trixie"))) {
				name, _, _ := strings.Cut(line, ":")
				if line != "\n" && !strings.Contains("Types URIs Suites Components Signed-By", name) {
					t.Errorf("a source puts the line %q into ours", line)
				}
			}
		}
	})
}

func TestParseURIs(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	out, err := parseURIs([]byte("'http://m/pool/z/zlib_1%2b1_amd64.deb' zlib1g_1%3a1.3+b1_amd64.deb 88720 SHA256:" + sum + "\n" +
		"'http://m/b' bash_5.2.37-2+b10_amd64.deb 1 SHA256:" + sum + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := []Locked{
		{Name: "bash", Version: "5.2.37-2+b10", File: "bash_5.2.37-2+b10_amd64.deb", SHA256: sum},
		{Name: "zlib1g", Version: "1:1.3+b1", File: "zlib1g_1%3a1.3+b1_amd64.deb", SHA256: sum},
	}
	if diff := cmp.Diff(want, out); diff != "" {
		t.Errorf("packages (-want +got):\n%s", diff)
	}
	for _, line := range []string{
		"'http://m/b' bash_5_amd64.deb 1 MD5Sum:aa7596ae1c4ebac744aaae0ba0f28f0a",
		"'http://m/b' ../../bash_5_amd64.deb 1 SHA256:" + sum,
		"'' 0_/_0.deb 0 SHA256:" + sum,
		"Reading package lists...",
		"'http://m/b' bash_5%zz_amd64.deb 1 SHA256:" + sum,
	} {
		if out, err := parseURIs([]byte(line)); err == nil {
			t.Errorf("%q is read as %v", line, out)
		}
	}
}

func FuzzParseURIs(f *testing.F) {
	f.Add([]byte("'u' bash_5_amd64.deb 1 SHA256:" + strings.Repeat("0a", 32)))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := parseURIs(data)
		for _, l := range all {
			if err != nil || filepath.Base(l.File) != l.File || len(l.SHA256) != 64 || l.Version == "" {
				t.Errorf("%q gives %+v, error %v", data, l, err)
			}
		}
	})
}

// archive writes a tar archive as dpkg-deb gives it.
func archive(t *testing.T, heads []tar.Header) string {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range heads {
		data := []byte(h.PAXRecords["data"])
		h.PAXRecords, h.Size = nil, int64(len(data))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(name, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func file(name, data string, mode int64) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, PAXRecords: map[string]string{"data": data}, ModTime: time.Unix(100, 0)}
}

func TestIndex(t *testing.T) {
	name := archive(t, []tar.Header{
		{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755},
		file("./bin/tool", "tool's bytes", 0o4755),
		file("./usr/share/doc/x/copyright", strings.Repeat("c", 2000), 0o644),
		{Name: "./usr/bin/alias", Typeflag: tar.TypeLink, Linkname: "./bin/tool", Mode: 0o4755},
		{Name: "./lib/l.so.1", Typeflag: tar.TypeSymlink, Linkname: "l.so.1.2", ModTime: time.Unix(200, 0)},
	})
	p, err := index(Locked{Name: "x", SHA256: "d"}, name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"usr/bin/alias", "usr/bin/tool", "usr/lib/l.so.1", "usr/share/doc/x/copyright"}, p.Files()); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	for _, name := range []string{"usr/bin/tool", "usr/bin/alias"} {
		n := p.Nodes[name]
		if data, err := n.Content.ReadAll(); err != nil || string(data) != "tool's bytes" || n.Mode.Perm() != 0o755 || n.Mode&os.ModeSetuid == 0 {
			t.Errorf("%s has mode %v and %q, error %v", name, n.Mode, data, err)
		}
	}
	if n := p.Nodes["usr/lib/l.so.1"]; n.Target != "l.so.1.2" {
		t.Errorf("link leads to %q", n.Target)
	}
	if data, err := p.Nodes["usr/share/doc/x/copyright"].Content.ReadAll(); err != nil || len(data) != 2000 {
		t.Errorf("copyright has %d bytes, error %v", len(data), err)
	}
	if !p.Newest.Equal(time.Unix(200, 0)) {
		t.Errorf("newest is %v", p.Newest)
	}
	if _, err := index(Locked{}, archive(t, []tar.Header{{Name: "./dev/x", Typeflag: tar.TypeChar}})); err == nil {
		t.Error("a device is taken")
	}
	if _, err := index(Locked{}, archive(t, []tar.Header{{Name: "./x", Typeflag: tar.TypeLink, Linkname: "./gone"}})); err == nil {
		t.Error("a hard link to nothing is taken")
	}
}

func TestUnpackVerifies(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("dpkg-deb is needed: install the package dpkg")
	}
	dir := t.TempDir()
	tree := filepath.Join(dir, "x", "DEBIAN")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	control := "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n"
	if err := os.WriteFile(filepath.Join(tree, "control"), []byte(control), 0o600); err != nil {
		t.Fatal(err)
	}
	deb := filepath.Join(dir, "x.deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "-b", filepath.Join(dir, "x"), deb).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "x.tar")
	if err := unpack(context.Background(), deb, to, strings.Repeat("0", 64)); err == nil || !strings.Contains(err.Error(), "signed index says") {
		t.Errorf("a wrong digest gives error %v", err)
	}
	if _, err := os.Stat(to); err == nil {
		t.Error("a package with a wrong digest was unpacked")
	}
	sum := sha256.Sum256(data)
	if err := unpack(context.Background(), deb, to, hex.EncodeToString(sum[:])); err != nil {
		t.Fatal(err)
	}
	if _, err := index(Locked{}, to); err != nil {
		t.Error(err)
	}
}

func TestLicense(t *testing.T) {
	const head = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"
	for name, test := range map[string]struct{ text, want string }{
		"one":              {head + "Files: *\nLicense: GPL-2+\n text\n", "GPL-2.0-or-later"},
		"several":          {head + "Files: *\nLicense: GPL-2+\n\nFiles: x\nLicense: Expat\n\nFiles: y\nLicense: GPL-2+\n", "GPL-2.0-or-later AND MIT"},
		"or":               {head + "Files: *\nLicense: Artistic or GPL-1+\n", "(Artistic-1.0-Perl OR GPL-1.0-or-later)"},
		"comma":            {head + "Files: *\nLicense: BSD-3-clause, and ISC\n", "(BSD-3-Clause AND ISC)"},
		"unknown":          {head + "Files: *\nLicense: Weird_one+\n", "LicenseRef-Weird-one-or-later"},
		"exception":        {head + "Files: *\nLicense: GPL-3+ with Autoconf exception\n", "LicenseRef-GPL-3-or-later-with-Autoconf-exception"},
		"no files":         {head + "License: GPL-2\n text\n", "NOASSERTION"},
		"old format":       {"This package was debianized by x.\nLicense: GPL\n", "NOASSERTION"},
		"empty":            {"", "NOASSERTION"},
		"only an operator": {head + "Files: *\nLicense: or\n", "NOASSERTION"},
	} {
		if got := License([]byte(test.text)); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

func FuzzLicense(f *testing.F) {
	f.Add([]byte("Format: copyright-format/1.0\n\nFiles: *\nLicense: (a or b) and c with d exception\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		e := License(data)
		last := "("
		for w := range strings.FieldsSeq(strings.NewReplacer("(", " ", ")", " ").Replace(e)) {
			if operator := w == "OR" || w == "AND"; operator == (last == "OR" || last == "AND" || last == "(") {
				t.Fatalf("%q gives %q: %q follows %q", data, e, w, last)
			}
			last = w
		}
	})
}
