package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/config"
	"github.com/coracle-engine/coracle/host/image"
	"github.com/coracle-engine/coracle/host/machine"
	"github.com/coracle-engine/coracle/host/paths"
)

// files is host/image as host/machine wants it.
type files struct {
	home     string
	place    paths.Machine
	settings api.Settings
	keep     bool // the settings are to be written
	image    image.Image
}

// findImage is the directory of the image to install for arch.
func findImage(arch string) (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	return image.Find(image.Places(os.Getenv("CORACLE_IMAGE"), exe, arch), arch)
}

func (f *files) Image(context.Context) (machine.Assets, error) {
	dir, err := findImage(guestArch(f.settings))
	if err != nil {
		return machine.Assets{}, err
	}
	if f.image, err = image.Install(paths.Images(f.home), dir); err != nil {
		return machine.Assets{}, err
	}
	i := f.image
	return machine.Assets{Image: i.Image, Kernel: i.Kernel(), Unpacked: i.Unpacked(), Root: i.Root()}, nil
}

// Disk also keeps the settings: by now all of them are known to be possible.
func (f *files) Disk(size int64) (string, error) {
	if err := image.EnsureDisk(f.place.DataDisk(), size); err != nil {
		return "", err
	}
	if !f.keep { // a file that says so already keeps its owner's comments
		return f.place.DataDisk(), nil
	}
	return f.place.DataDisk(), config.Save(f.place.Config(), f.settings)
}

func (f *files) initrd() string { return filepath.Join(f.place.RunDir(), "initrd") }

func (f *files) Initrd(boot guestapi.Boot) (string, error) {
	if err := image.WriteInitrd(f.initrd(), f.image.Initrd(), boot); err != nil {
		return "", fmt.Errorf("write initramfs: %w", err)
	}
	return f.initrd(), nil
}

func (f *files) Booted() { _ = os.Remove(f.initrd()) }
