package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/coracle-engine/coracle/images/tree"
)

// maxImage bounds an unpacked kernel, in bytes.
const maxImage = 256 << 20

// bootable checks that c is what every hypervisor can start: a bzImage on amd64 (Linux, Documentation/arch/x86/boot.rst),
// an uncompressed Image on arm64 (Documentation/arch/arm64/booting.rst), unpacked where Debian has it compressed. For
// amd64 it also returns the ELF file within.
func bootable(c tree.Content, arch string) (tree.Content, *tree.Content, error) {
	data, err := c.ReadAll()
	if err != nil {
		return c, nil, err
	}
	switch arch {
	case "amd64":
		unpacked, err := unpackBzImage(data)
		if err != nil {
			return c, nil, err
		}
		plain := tree.Bytes(unpacked)
		return c, &plain, nil
	case "arm64":
		if bytes.HasPrefix(data, gzipMagic) {
			if data, err = decompress(data); err != nil {
				return c, nil, err
			}
			c = tree.Bytes(data)
		}
		if len(data) < 64 || string(data[56:60]) != "ARM\x64" {
			return c, nil, fmt.Errorf("it is no uncompressed arm64 Image")
		}
		return c, nil, nil
	}
	return c, nil, fmt.Errorf("no kernel format is known for %s", arch)
}

// The fields of a bzImage's setup header (boot.rst, "Details of Header Fields").
const (
	setupSects    = 0x1f1
	setupMagic    = 0x202
	payloadOffset = 0x248
	payloadLength = 0x24c
	setupEnd      = 0x250
)

// unpackBzImage returns the kernel's own ELF file, checked to have the entry by which QEMU starts one directly. It spares
// the guest its decompression, the better part of a second under emulation; the price is that the kernel's addresses are
// not randomised, since that is done there too.
func unpackBzImage(data []byte) ([]byte, error) {
	if len(data) < setupEnd || string(data[setupMagic:setupMagic+4]) != "HdrS" {
		return nil, fmt.Errorf("it is no bzImage")
	}
	sectors := int64(data[setupSects])
	if sectors == 0 {
		sectors = 4 // boot.rst: "if the field contains 0, the real value is 4"
	}
	at := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(data[payloadOffset:]))
	length := int64(binary.LittleEndian.Uint32(data[payloadLength:]))
	if length < 8 || at+length > int64(len(data)) {
		return nil, fmt.Errorf("its payload lies outside of it")
	}
	payload := data[at : at+length]
	if !bytes.HasPrefix(payload, gzipMagic) {
		payload = payload[:length-4] // all but gzip are followed by the unpacked size
	}
	out, err := decompress(payload)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(out))
	if err != nil {
		return nil, fmt.Errorf("read what is in it: %w", err)
	}
	for _, p := range f.Progs {
		if notes := make([]byte, min(p.Filesz, 1<<20)); p.Type == elf.PT_NOTE {
			if _, err := p.ReadAt(notes, 0); err == nil && bytes.Contains(notes, pvhNote) {
				return out, nil
			}
		}
	}
	return nil, fmt.Errorf("it has no PVH entry")
}

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	// pvhNote begins the note XEN_ELFNOTE_PHYS32_ENTRY (xen/include/public/elfnote.h): type 18, name "Xen".
	pvhNote = []byte{0x12, 0, 0, 0, 'X', 'e', 'n', 0}
)

func decompress(data []byte) ([]byte, error) {
	var r io.Reader
	switch {
	case bytes.HasPrefix(data, gzipMagic):
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			return nil, err
		}
		r = z
	case bytes.HasPrefix(data, zstdMagic):
		z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxImage))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = z
	default:
		return nil, fmt.Errorf("it is compressed in a way that is not known here: it begins with %x", data[:min(4, len(data))])
	}
	out, err := io.ReadAll(io.LimitReader(r, maxImage+1))
	if err != nil {
		return nil, fmt.Errorf("decompress it: %w", err)
	}
	if len(out) > maxImage {
		return nil, fmt.Errorf("it is bigger than %d bytes unpacked", maxImage)
	}
	return out, nil
}
