package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/coracle-engine/coracle/images/manifest"
	"github.com/coracle-engine/coracle/images/tree"
)

// names returns an image's files, the manifest last: what has one is whole.
func names(arch string) []string {
	all := []string{manifest.Kernel, manifest.Initrd, manifest.Root, manifest.SBOM, manifest.Name}
	if arch == "amd64" {
		all = append([]string{manifest.KernelELF}, all...)
	}
	return all
}

// stamp is the file beside an image that says what it was made of, and by which build of this program.
const stamp = ".made"

// mark returns stamp's content.
func (img *image) mark() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(self)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return img.version + " " + hex.EncodeToString(sum[:]) + "\n", nil
}

// current reports whether dir holds img whole already.
func current(dir string, img *image) bool {
	want, err := img.mark()
	if err != nil {
		return false
	}
	have, err := os.ReadFile(filepath.Join(dir, stamp))
	if err != nil || string(have) != want {
		return false
	}
	m, _, err := manifest.Load(dir)
	if err != nil {
		return false
	}
	for _, f := range m.Files {
		if st, err := os.Stat(filepath.Join(dir, f.Name)); err != nil || st.Size() != f.Size {
			return false
		}
	}
	return true
}

// write makes all files beside dir's old ones and then puts them in their place. A machine that runs from the old files
// keeps them: they are replaced, not written over. Nothing is compressed: unpacking is the guest's time (0.15 s for the
// initramfs under TCG), and the download is compressed as a whole.
func (img *image) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	temp := filepath.Join(dir, ".new")
	if err := errors.Join(os.RemoveAll(temp), os.Mkdir(temp, 0o755)); err != nil { // a build may have been killed here
		return err
	}
	defer os.RemoveAll(temp)
	steps := map[string]func(*os.File) error{
		manifest.Kernel:    func(f *os.File) error { return write(f, img.kernel.Image) },
		manifest.KernelELF: func(f *os.File) error { return write(f, *img.kernel.ELF) },
		manifest.Initrd:    func(f *os.File) error { return img.initrd.WriteCPIO(f) },
		manifest.Root:      func(f *os.File) error { return img.root.WriteEROFS(f, temp, img.built) },
		manifest.SBOM:      img.writeSBOM,
		manifest.Name:      func(f *os.File) error { return img.writeManifest(f, temp) },
	}
	for _, name := range names(img.arch) {
		if err := create(filepath.Join(temp, name), steps[name]); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	if err := errors.Join(remove(filepath.Join(dir, stamp)), remove(filepath.Join(dir, manifest.Name))); err != nil {
		return err
	}
	for _, name := range names(img.arch) {
		if err := os.Rename(filepath.Join(temp, name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	text, err := img.mark()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, stamp), []byte(text), 0o644)
}

func remove(name string) error {
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

func create(name string, fill func(*os.File) error) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := fill(f); err != nil {
		return err
	}
	return f.Close()
}

func write(f *os.File, c tree.Content) error {
	r, err := c.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(f, r)
	return err
}

func (img *image) writeManifest(f *os.File, dir string) error {
	m := manifest.Manifest{Format: manifest.Format, Version: img.version, Arch: img.arch, KernelName: img.kernel.Release}
	all := names(img.arch)
	for _, name := range all[:len(all)-1] {
		file, err := manifest.Measure(dir, name)
		if err != nil {
			return err
		}
		m.Files = append(m.Files, file)
	}
	items, err := img.components()
	if err != nil {
		return err
	}
	m.Components = items
	data, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	if _, err := manifest.Parse(data); err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	return err
}

func report(dir, arch string, tell func(string, ...any)) error {
	for _, name := range names(arch) {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		tell("%s: %s", filepath.Join(dir, name), megabytes(st.Size()))
	}
	return nil
}
