// Package image keeps what a machine boots from: the kernel and root image, installed once per digest, shared by all
// machines and verified before use; the machine's data disk; and the initramfs of one boot, with what the guest is told in
// it. It trusts the manifest's digests and nothing else. Its neighbour is the host process, which hands the paths to a
// vm.Driver.
package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/images/manifest"
)

// Image is an installed and verified image.
type Image struct {
	api.Image
	Dir string
	elf bool // it has manifest.KernelELF
}

// Kernel is the kernel's path.
func (i Image) Kernel() string { return filepath.Join(i.Dir, manifest.Kernel) }

// Unpacked is the path of the same kernel, already decompressed; empty where the image has none.
func (i Image) Unpacked() string {
	if !i.elf {
		return ""
	}
	return filepath.Join(i.Dir, manifest.KernelELF)
}

// Initrd is the initramfs's path, as the image has it.
func (i Image) Initrd() string { return filepath.Join(i.Dir, manifest.Initrd) }

// Root is the root file system's path.
func (i Image) Root() string { return filepath.Join(i.Dir, manifest.Root) }

// Places are the directories where an image for arch may lie: $CORACLE_IMAGE alone where it is set (the image's own
// directory, or one above it with a directory for each architecture); else share/coracle beside the program's directory,
// where packages install it, then build/image of the checkout that the program was built in.
func Places(env, exe, arch string) []string {
	if env != "" {
		return []string{env, filepath.Join(env, arch)}
	}
	bin := filepath.Dir(exe)
	up := filepath.Dir(bin)
	return []string{
		filepath.Join(up, "share", "coracle", "image", arch),
		filepath.Join(up, "image", arch), // build/bin → build/image
		filepath.Join(up, "build", "image", arch),
	}
}

// Find is the first of places that holds an image for arch.
func Find(places []string, arch string) (string, error) {
	for _, dir := range places {
		m, _, err := manifest.Load(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return "", corrupt(dir, err)
		case m.Arch != arch:
			return "", &api.Error{Code: api.CodeNoImage, Message: fmt.Sprintf("the guest image in %s is for %s: this host needs %s", dir, m.Arch, arch), Hint: "run `make images` on this host, or set CORACLE_IMAGE to an image for " + arch}
		}
		return filepath.Abs(dir)
	}
	return "", &api.Error{Code: api.CodeNoImage, Message: fmt.Sprintf("there is no guest image in %v", places), Hint: "run `make images` in the checkout, install Coracle again, or set CORACLE_IMAGE to the image's directory"}
}

func corrupt(dir string, err error) error {
	return &api.Error{Code: api.CodeAssetCorrupt, Message: fmt.Sprintf("the guest image in %s is damaged: %v", dir, err), Hint: "run `make images` to build it again, or install Coracle again"}
}

// Install makes source's image ready under images (one directory for each digest) and returns it. An installed image that
// was verified and has not been touched since is used as it is; a damaged one is replaced, if source is good. Errors about
// the image itself are of class api.CodeAssetCorrupt.
func Install(images, source string) (Image, error) {
	m, digest, err := manifest.Load(source)
	if err != nil {
		return Image{}, corrupt(source, err)
	}
	dir := filepath.Join(images, digest)
	img := Image{Dir: dir, Image: api.Image{Version: m.Version, Digest: digest, Kernel: m.KernelName}}
	img.elf = slices.ContainsFunc(m.Files, func(f manifest.File) bool { return f.Name == manifest.KernelELF })
	defer touch(dir)
	if installed(dir, digest, m) {
		return img, nil
	}
	if err := os.MkdirAll(images, 0o700); err != nil {
		return Image{}, fmt.Errorf("make image directory: %w", err)
	}
	tmp, err := os.MkdirTemp(images, tmpPrefix)
	if err != nil {
		return Image{}, fmt.Errorf("make image directory: %w", err)
	}
	defer removeTree(tmp)
	if err := copyImage(tmp, source, m); err != nil {
		return Image{}, err
	}
	if err := place(tmp, dir, digest, m); err != nil {
		return Image{}, err
	}
	sweep(images)
	return img, nil
}

// place gives tmp its name. Another machine's process may install the same image at the same time: whoever comes second
// uses the first one's.
func place(tmp, dir, digest string, m *manifest.Manifest) error {
	if installed(dir, digest, m) {
		return nil
	}
	if _, err := os.Lstat(dir); err == nil { // damaged; a machine that still runs from it keeps its open files
		old := tmp + ".old"
		if err := os.Rename(dir, old); err != nil {
			return fmt.Errorf("replace damaged image: %w", err)
		}
		defer removeTree(old)
	}
	if err := os.Rename(tmp, dir); err != nil && !installed(dir, digest, m) {
		return fmt.Errorf("install image: %w", err)
	}
	return nil
}

// Look says which image lies in source, without verifying more than its manifest.
func Look(source string) (api.Image, error) {
	m, digest, err := manifest.Load(source)
	if err != nil {
		return api.Image{}, corrupt(source, err)
	}
	return api.Image{Version: m.Version, Digest: digest, Kernel: m.KernelName}, nil
}
