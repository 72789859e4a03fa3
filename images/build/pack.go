package main

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/coracle-engine/coracle/images/manifest"
)

// maxPack is what SPECIFICATION.md promises of the download form's size, in bytes.
const maxPack = 100e6

// zstdArgs are fixed, the number of threads too, so that one version of zstd gives one outcome. Level 19 takes two minutes
// and saves a seventh of every download. The window of 128 MiB is what any decoder takes unasked, and finds the guest's
// second copy.
var zstdArgs = []string{"-19", "--long=27", "-T2", "-q", "-f", "-o"}

// pack writes the image in dir as a compressed archive and returns its size. It keeps none that is too big.
func pack(ctx context.Context, dir, arch, name string) (int64, error) {
	if err := needTools("zstd", "zstd"); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return 0, err
	}
	temp := name + ".part"
	defer os.Remove(temp)
	cmd := exec.CommandContext(ctx, "zstd", append(zstdArgs, temp)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start zstd: %w", err)
	}
	err = errors.Join(archive(in, dir, arch), in.Close(), cmd.Wait())
	if err != nil {
		return 0, fmt.Errorf("pack %s: %w", name, err)
	}
	st, err := os.Stat(temp)
	if err != nil {
		return 0, err
	}
	if st.Size() > maxPack {
		return 0, fmt.Errorf("pack %s: %s are more than the %s that SPECIFICATION.md promises", name, megabytes(st.Size()), megabytes(maxPack))
	}
	return st.Size(), os.Rename(temp, name)
}

// archive writes an image's files, the manifest first, so that who unpacks it knows what to expect.
func archive(w io.Writer, dir, arch string) error {
	out := tar.NewWriter(w)
	all := names(arch)
	for _, file := range append([]string{manifest.Name}, all[:len(all)-1]...) {
		if err := packFile(out, dir, file); err != nil {
			return err
		}
	}
	return out.Close()
}

func packFile(w *tar.Writer, dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	head := &tar.Header{Name: name, Mode: 0o644, Size: st.Size(), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if err := w.WriteHeader(head); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}
