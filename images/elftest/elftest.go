// Package elftest makes tiny ELF files for the tests of images/kernel and images/rootfs: just enough for debug/elf to read
// a section or the libraries that a file is linked with. Nothing but tests imports it.
package elftest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// Section is one section of a file.
type Section struct {
	Name string
	Type elf.SectionType
	Link uint32 // index of another section; the first that is given has index 1
	Data []byte
}

// File returns a 64-bit little-endian ELF file with the given sections, and with an interpreter where interp is not empty.
func File(interp string, sections ...Section) []byte {
	const head, progSize, sectionSize = 64, 56, 64
	names := []byte{0}
	for _, s := range sections {
		names = append(append(names, s.Name...), 0)
	}
	sections = append(sections, Section{Name: "", Type: elf.SHT_STRTAB, Data: names})
	var body bytes.Buffer
	at := uint64(head + progSize)
	body.WriteString(interp)
	heads := []elf.Section64{{}}
	name := uint32(1)
	for i, s := range sections {
		h := elf.Section64{Type: uint32(s.Type), Off: at + uint64(body.Len()), Size: uint64(len(s.Data)), Link: s.Link, Addralign: 1}
		if i < len(sections)-1 {
			h.Name = name
			name += uint32(len(s.Name) + 1)
		}
		heads = append(heads, h)
		body.Write(s.Data)
	}
	progs := uint16(0)
	if interp != "" {
		progs = 1
	}
	out := &bytes.Buffer{}
	write := func(v any) { _ = binary.Write(out, binary.LittleEndian, v) }
	write(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Phoff: head, Shoff: at + uint64(body.Len()), Ehsize: head, Phentsize: progSize, Phnum: progs,
		Shentsize: sectionSize, Shnum: uint16(len(heads)), Shstrndx: uint16(len(heads) - 1),
	})
	write(elf.Prog64{Type: uint32(elf.PT_INTERP), Off: at, Filesz: uint64(len(interp)), Memsz: uint64(len(interp))})
	out.Write(body.Bytes())
	write(heads)
	return out.Bytes()
}

// Linked returns a program that is linked with libraries and started by interp, which may be empty.
func Linked(interp string, libraries ...string) []byte {
	names := []byte{0}
	var tags bytes.Buffer
	for _, l := range libraries {
		_ = binary.Write(&tags, binary.LittleEndian, elf.Dyn64{Tag: int64(elf.DT_NEEDED), Val: uint64(len(names))})
		names = append(append(names, l...), 0)
	}
	_ = binary.Write(&tags, binary.LittleEndian, elf.Dyn64{})
	if interp != "" {
		interp += "\x00"
	}
	return File(interp,
		Section{Name: ".dynstr", Type: elf.SHT_STRTAB, Data: names},
		Section{Name: ".dynamic", Type: elf.SHT_DYNAMIC, Link: 1, Data: tags.Bytes()})
}
