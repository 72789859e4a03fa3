package image_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/image"
	"github.com/coracle-engine/coracle/images/manifest"
)

// TestUnpacked finds the unpacked kernel where the manifest covers it, and only there.
func TestUnpacked(t *testing.T) {
	source := makeImage(t, "amd64")
	elf := filepath.Join(source, manifest.KernelELF)
	write(t, elf, "\x7fELF")
	if img := install(t, home(t), source); img.Unpacked() != "" {
		t.Errorf("a file that nothing covers is used: %s", img.Unpacked())
	}
	m, _, err := manifest.Load(source)
	if err != nil {
		t.Fatal(err)
	}
	f, err := manifest.Measure(source, manifest.KernelELF)
	if err != nil {
		t.Fatal(err)
	}
	m.Files = append(m.Files, f)
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(source, manifest.Name), string(data))
	images := home(t)
	for range 2 { // installed now, and before
		img := install(t, images, source)
		if img.Unpacked() == "" || read(t, img.Unpacked()) != "\x7fELF" || filepath.Dir(img.Unpacked()) != img.Dir {
			t.Errorf("unpacked kernel is %q", img.Unpacked())
		}
	}
}

// TestSourceDamagedLater has the source rot after the image was installed: the installed one serves, until it rots too.
func TestSourceDamagedLater(t *testing.T) {
	images, source := home(t), makeImage(t, "amd64")
	img := install(t, images, source)
	write(t, filepath.Join(source, manifest.Root), "rot")
	again, err := image.Install(images, source)
	if err != nil || again != img {
		t.Fatalf("got %+v, error %v: want %+v", again, err, img)
	}
	if err := os.Chmod(img.Root(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img.Root(), 5); err != nil {
		t.Fatal(err)
	}
	if _, err := image.Install(images, source); api.CodeOf(err) != api.CodeAssetCorrupt {
		t.Errorf("both damaged: error is %v", err)
	}
}
