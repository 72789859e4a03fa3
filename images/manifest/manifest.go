// Package manifest says what a guest image is made of: the file manifest.json beside a kernel, an initramfs and a root file
// system, with the digest of each and the version and licence of everything in them. The image builder (images/build)
// writes it, host/image reads it and trusts nothing that it does not cover. It imports the standard library alone.
package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
)

// The files of an image, beside one another in one directory.
const (
	Name   = "manifest.json"
	Kernel = "vmlinuz" // uncompressed Image on arm64, bzImage on amd64
	// KernelELF is the same kernel unpacked, in images for amd64 only: QEMU starts it by its PVH entry and so skips the
	// guest's own decompression (0.8 s under TCG), but its addresses are not randomised (no KASLR).
	KernelELF = "vmlinux"
	Initrd    = "initrd" // cpio; more archives may be appended
	Root      = "root.erofs"
	SBOM      = "sbom.spdx.json"
)

// Format is the version of this file's own format.
const Format = 1

// Manifest describes one image for one architecture.
type Manifest struct {
	Format     int         `json:"format"`
	Version    string      `json:"version"`    // of the image: the same inputs, the same version
	Arch       string      `json:"arch"`       // as GOARCH spells it
	KernelName string      `json:"kernelName"` // uname -r
	Files      []File      `json:"files"`
	Components []Component `json:"components"`
}

// File is one file of the image.
type File struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // lower-case hex
}

// Component is one thing that the image contains: a Debian package, a Go program, the kernel.
type Component struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	License string `json:"license"` // SPDX expression where one is known, else "NOASSERTION"
	Kind    string `json:"kind"`    // "deb" or "go"
	SHA256  string `json:"sha256"`  // of the package, or of the program
}

var (
	hex64 = regexp.MustCompile(`^[0-9a-f]{64}$`)
	// plain is what a file may be called: the same on every host, and nowhere else than in the image's directory.
	plain = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`)
)

// Load reads and checks dir's manifest and returns it with its digest, by which the image is known: the lower-case hex
// SHA-256 of the file. It does not look at the other files; Verify does.
func Load(dir string) (*Manifest, string, error) {
	data, err := os.ReadFile(filepath.Join(dir, Name))
	if err != nil {
		return nil, "", err
	}
	m, err := Parse(data)
	if err != nil {
		return nil, "", fmt.Errorf("parse %s: %w", filepath.Join(dir, Name), err)
	}
	sum := sha256.Sum256(data)
	return m, hex.EncodeToString(sum[:]), nil
}

// Parse decodes a manifest and checks its form.
func Parse(data []byte) (*Manifest, error) {
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(data))
	if err := dec.Decode(&m); err != nil {
		return nil, err
	}
	if m.Format != Format {
		return nil, fmt.Errorf("image manifest has format %d, this program reads %d", m.Format, Format)
	}
	if m.Version == "" || m.Arch == "" {
		return nil, fmt.Errorf("image manifest names no version or architecture")
	}
	have := map[string]bool{}
	for _, f := range m.Files {
		if have[f.Name] || f.Name == Name || !plain.MatchString(f.Name) || f.Size <= 0 || !hex64.MatchString(f.SHA256) {
			return nil, fmt.Errorf("image manifest has a bad entry for file %q", f.Name)
		}
		have[f.Name] = true
	}
	for _, name := range []string{Kernel, Initrd, Root} {
		if !have[name] {
			return nil, fmt.Errorf("image manifest does not cover %s", name)
		}
	}
	return &m, nil
}

// Verify compares f with its copy in dir: size first, then digest.
func (f File) Verify(dir string) error {
	r, err := os.Open(filepath.Join(dir, f.Name))
	if err != nil {
		return err
	}
	defer r.Close()
	if st, err := r.Stat(); err != nil {
		return err
	} else if st.Size() != f.Size {
		return fmt.Errorf("%s has %d bytes: want %d", f.Name, st.Size(), f.Size)
	}
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != f.SHA256 {
		return fmt.Errorf("%s has digest %s: want %s", f.Name, got, f.SHA256)
	}
	return nil
}

// Measure makes the entry for dir's file name.
func Measure(dir, name string) (File, error) {
	r, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return File{}, err
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return File{}, err
	}
	return File{Name: name, Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}
