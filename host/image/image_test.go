package image_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/image"
	"github.com/coracle-engine/coracle/images/manifest"
)

// make writes a small image and returns its directory.
func makeImage(t *testing.T, arch string) string {
	t.Helper()
	dir := t.TempDir()
	m := manifest.Manifest{Format: manifest.Format, Version: "1", Arch: arch, KernelName: "6.12"}
	for i, name := range []string{manifest.Kernel, manifest.Initrd, manifest.Root, manifest.SBOM} {
		write(t, filepath.Join(dir, name), strings.Repeat(fmt.Sprint(name, i), 1000))
		f, err := manifest.Measure(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		m.Files = append(m.Files, f)
	}
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, manifest.Name), string(data))
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// home is where images are installed; they are made removable at the test's end.
func home(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "images")
	t.Cleanup(func() {
		filepath.WalkDir(dir, func(path string, _ os.DirEntry, _ error) error { return os.Chmod(path, 0o700) })
	})
	return dir
}

func install(t *testing.T, images, source string) image.Image {
	t.Helper()
	img, err := image.Install(images, source)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{img.Kernel(), img.Initrd(), img.Root()} {
		if diff := cmp.Diff(read(t, filepath.Join(source, filepath.Base(path))), read(t, path)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
	entries, err := os.ReadDir(images)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s was left behind", e.Name())
		}
	}
	return img
}

func TestFind(t *testing.T) {
	here, other := makeImage(t, "amd64"), makeImage(t, "arm64")
	empty, odd := t.TempDir(), t.TempDir()
	write(t, filepath.Join(odd, manifest.Name), `{"format":`)
	for _, tc := range []struct {
		name   string
		places []string
		want   string
		code   api.Code
	}{
		{"first", []string{here, other}, here, ""},
		{"passes over what is not there", []string{filepath.Join(empty, "no"), empty, here}, here, ""},
		{"none", []string{empty}, "", api.CodeNoImage},
		{"another architecture", []string{other}, "", api.CodeNoImage},
		{"unreadable manifest", []string{odd, here}, "", api.CodeAssetCorrupt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := image.Find(tc.places, "amd64")
			if got != tc.want || tc.code != "" && api.CodeOf(err) != tc.code || (err == nil) != (tc.code == "") {
				t.Errorf("got %q, %v; want %q, code %q", got, err, tc.want, tc.code)
			}
		})
	}
}

func TestPlaces(t *testing.T) {
	if diff := cmp.Diff([]string{"/e", "/e/arm64"}, image.Places("/e", "/x/build/bin/coracled", "arm64")); diff != "" {
		t.Error(diff)
	}
	got := strings.Join(image.Places("", "/x/build/bin/coracled", "arm64"), " ")
	for _, want := range []string{"/x/build/image/arm64", "/x/build/share/coracle/image/arm64"} {
		if !strings.Contains(got, want) {
			t.Errorf("%s is not among %s", want, got)
		}
	}
}

func TestInstall(t *testing.T) {
	images, source := home(t), makeImage(t, "amd64")
	first := install(t, images, source)
	if filepath.Base(first.Dir) != first.Digest || first.Version != "1" || first.Image.Kernel != "6.12" {
		t.Errorf("installed %+v", first)
	}
	for _, path := range []string{first.Kernel(), first.Root()} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm()&0o222 != 0 {
			t.Errorf("%s can be written: %v %v", path, st.Mode(), err)
		}
	}
	before, err := os.Stat(first.Root())
	if err != nil {
		t.Fatal(err)
	}
	again := install(t, images, source)
	after, err := os.Stat(again.Root())
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("a good image was installed again (%v)", err)
	}
}

// TestDamage damages an installed image in each way that a file can be, and wants it whole at the next start.
func TestDamage(t *testing.T) {
	overwrite := func(path string) error { // same size, other bytes, old time stamp
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		os.Chmod(path, 0o600)
		if err := os.WriteFile(path, bytes.Repeat([]byte("x"), int(st.Size())), 0o400); err != nil {
			return err
		}
		return os.Chtimes(path, time.Time{}, st.ModTime())
	}
	for name, damage := range map[string]func(image.Image) error{
		"truncated": func(i image.Image) error {
			os.Chmod(i.Root(), 0o600)
			return os.Truncate(i.Root(), 10)
		},
		"overwritten": func(i image.Image) error { return overwrite(i.Kernel()) },
		"removed":     func(i image.Image) error { return os.Remove(i.Initrd()) },
		"linked away": func(i image.Image) error { os.Remove(i.Root()); return os.Symlink(i.Kernel(), i.Root()) },
		"manifest": func(i image.Image) error {
			os.Chmod(filepath.Join(i.Dir, manifest.Name), 0o600)
			return os.WriteFile(filepath.Join(i.Dir, manifest.Name), []byte("{}"), 0o600)
		},
		"stamps lost": func(i image.Image) error { return os.Remove(filepath.Join(i.Dir, "verified.json")) },
		"stamps odd": func(i image.Image) error {
			return os.WriteFile(filepath.Join(i.Dir, "verified.json"), []byte("{"), 0o600)
		},
	} {
		t.Run(name, func(t *testing.T) {
			images, source := home(t), makeImage(t, "amd64")
			img := install(t, images, source)
			if err := os.Chmod(img.Dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := damage(img); err != nil {
				t.Fatal(err)
			}
			install(t, images, source)
		})
	}
}

func TestBadSource(t *testing.T) {
	for name, damage := range map[string]func(string) error{
		"truncated": func(dir string) error { return os.Truncate(filepath.Join(dir, manifest.Root), 10) },
		"longer":    func(dir string) error { return os.Truncate(filepath.Join(dir, manifest.Root), 1<<20) },
		"overwritten": func(dir string) error {
			f, err := os.OpenFile(filepath.Join(dir, manifest.Kernel), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("!"), 5)
			return err
		},
		"incomplete":  func(dir string) error { return os.Remove(filepath.Join(dir, manifest.Initrd)) },
		"no manifest": func(dir string) error { return os.Remove(filepath.Join(dir, manifest.Name)) },
	} {
		t.Run(name, func(t *testing.T) {
			images, source := home(t), makeImage(t, "amd64")
			if err := damage(source); err != nil {
				t.Fatal(err)
			}
			if _, err := image.Install(images, source); api.CodeOf(err) != api.CodeAssetCorrupt {
				t.Errorf("error %v: want code %s", err, api.CodeAssetCorrupt)
			}
			if entries, _ := os.ReadDir(images); len(entries) != 0 {
				t.Errorf("left behind: %v", entries)
			}
		})
	}
}

// TestTogether installs the same image for several machines at once.
func TestTogether(t *testing.T) {
	images, source := home(t), makeImage(t, "amd64")
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := image.Install(images, source); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	install(t, images, source)
}

func TestSweep(t *testing.T) {
	images, source := home(t), makeImage(t, "amd64")
	day := 24 * time.Hour
	for name, tc := range map[string]struct {
		age  time.Duration
		gone bool
	}{
		".new-1": {2 * time.Hour, true}, // left by a dead process
		".new-2": {time.Minute, false},  // made by a living one
		"aaaa":   {8 * day, true},       // used by nobody
		"bbbb":   {6 * day, false},
	} {
		dir := filepath.Join(images, name)
		if err := os.MkdirAll(filepath.Join(dir, "x"), 0o700); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-tc.age)
		if err := errors.Join(os.Chmod(dir, 0o500), os.Chtimes(dir, then, then)); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := os.Stat(dir); (err != nil) != tc.gone {
				t.Errorf("%s: gone %t, want %t", name, err != nil, tc.gone)
			}
		}()
	}
	img, err := image.Install(images, source)
	if err != nil {
		t.Fatal(err)
	}
	then := time.Now().Add(-8 * day)
	if err := os.Chtimes(img.Dir, then, then); err != nil {
		t.Fatal(err)
	}
	install2 := func(source string) {
		t.Helper()
		if _, err := image.Install(images, source); err != nil {
			t.Fatal(err)
		}
	}
	install2(source) // it is in use again
	install2(makeImage(t, "arm64"))
	if _, err := os.Stat(img.Dir); err != nil {
		t.Errorf("an image in use is gone: %v", err)
	}
}
