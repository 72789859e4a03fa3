package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/coracle-engine/coracle/images/bom"
	"github.com/coracle-engine/coracle/images/debian"
	"github.com/coracle-engine/coracle/images/manifest"
	"github.com/coracle-engine/coracle/images/program"
)

// components lists packages and programs. Go modules are in the bill of materials alone.
func (img *image) components() ([]manifest.Component, error) {
	var out []manifest.Component
	for _, p := range img.packages {
		text, err := img.root.Copyright(p)
		if err != nil {
			return nil, fmt.Errorf("read the copyright of %s: %w", p.Name, err)
		}
		out = append(out, manifest.Component{Name: p.Name, Version: p.Version, License: debian.License(text), Kind: "deb", SHA256: p.SHA256})
	}
	for _, p := range img.programs {
		license := "Apache-2.0" // ours
		if m := (program.Module{Path: p.Info.Main.Path, Version: p.Info.Main.Version}); strings.HasPrefix(m.Version, "v") {
			texts, err := m.Legal(img.modcache)
			if err != nil {
				return nil, err
			}
			license = program.Recognise(texts)
		}
		out = append(out, manifest.Component{Name: p.Name, Version: p.Version, License: license, Kind: "go",
			SHA256: strings.TrimPrefix(p.Content.ID, "sha256:")})
	}
	return out, nil
}

func (img *image) writeSBOM(f *os.File) error {
	components, err := img.components()
	if err != nil {
		return err
	}
	d := bom.Document{Image: "coracle-guest-" + img.arch, Version: img.version, Created: img.built}
	for _, c := range components {
		item := bom.Item{Name: c.Name, Version: c.Version, License: c.License, SHA256: c.SHA256}
		if c.Kind == "deb" {
			item.PURL = "pkg:deb/debian/" + c.Name + "@" + c.Version + "?arch=" + img.arch + "&distro=" + debian.Suite
		}
		d.Items = append(d.Items, item)
	}
	for _, p := range img.programs {
		for _, l := range p.Static {
			d.Items = append(d.Items, bom.Item{Name: l.Name, Version: l.Version, License: l.License, SHA256: l.SHA256, Part: p.Name})
		}
		for _, m := range program.Modules([]*program.Program{p}) {
			texts, err := m.Legal(img.modcache)
			if err != nil {
				return err
			}
			d.Items = append(d.Items, bom.Item{Name: m.Path, Version: m.Version, License: program.Recognise(texts),
				PURL: "pkg:golang/" + m.Path + "@" + m.Version, Part: p.Name})
		}
	}
	data, err := bom.Encode(d)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return err
}
