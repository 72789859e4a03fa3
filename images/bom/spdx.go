// Package bom writes an image's bill of materials in the form of SPDX 2.3 as JSON: every Debian package, program and Go
// module in it, with version, licence and digest. images/build feeds it; others read the file.
package bom

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Item is one thing in the image.
type Item struct {
	Name, Version string
	License       string // an SPDX expression, or NOASSERTION
	SHA256        string // lower-case hex; empty where there is no file to hash
	PURL          string // a package URL: pkg:deb/debian/… or pkg:golang/…
	Part          string // the Name of the item that this is linked into; empty: the image itself
}

// Document is what a bill describes.
type Document struct {
	Image   string // name of the image
	Version string
	Created time.Time
	Items   []Item
}

type spdxDocument struct {
	Version       string         `json:"spdxVersion"`
	License       string         `json:"dataLicense"`
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	Creation      creation       `json:"creationInfo"`
	Packages      []spdxPackage  `json:"packages"`
	Extracted     []extracted    `json:"hasExtractedLicensingInfos,omitempty"`
	Relationships []relationship `json:"relationships"`
}

type creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID        string      `json:"SPDXID"`
	Name      string      `json:"name"`
	Version   string      `json:"versionInfo"`
	Location  string      `json:"downloadLocation"`
	Analyzed  bool        `json:"filesAnalyzed"`
	Concluded string      `json:"licenseConcluded"`
	Declared  string      `json:"licenseDeclared"`
	Copyright string      `json:"copyrightText"`
	Checksums []checksum  `json:"checksums,omitempty"`
	Refs      []reference `json:"externalRefs,omitempty"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type reference struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

type extracted struct {
	ID   string `json:"licenseId"`
	Name string `json:"name"`
	Text string `json:"extractedText"`
}

const (
	noAssertion = "NOASSERTION"
	documentID  = "SPDXRef-DOCUMENT"
	imageID     = "SPDXRef-image"
)

var licenseRef = regexp.MustCompile(`LicenseRef-[A-Za-z0-9.-]+`)

// Encode returns d as JSON. Equal documents give equal bytes.
func Encode(d Document) ([]byte, error) {
	out := spdxDocument{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: documentID, Name: d.Image + "-" + d.Version,
		Namespace: "https://github.com/coracle-engine/coracle/sbom/" + d.Image + "-" + d.Version,
		Creation:  creation{Created: d.Created.UTC().Format(time.RFC3339), Creators: []string{"Tool: coracle-images-build"}},
		Packages: []spdxPackage{{ID: imageID, Name: d.Image, Version: d.Version, Location: noAssertion,
			Concluded: noAssertion, Declared: noAssertion, Copyright: noAssertion}},
		Relationships: []relationship{{From: documentID, Type: "DESCRIBES", To: imageID}},
	}
	ids := map[string]string{}
	refs := map[string]bool{}
	for i, item := range d.Items {
		id := fmt.Sprintf("SPDXRef-%d-%s", i+1, safe(item.Name))
		if item.Part == "" {
			ids[item.Name] = id
		}
		out.Packages = append(out.Packages, encodeItem(id, item))
		rel := relationship{From: imageID, Type: "CONTAINS", To: id}
		if item.Part != "" {
			if ids[item.Part] == "" {
				return nil, fmt.Errorf("%s is part of %s, which is not listed before it", item.Name, item.Part)
			}
			rel = relationship{From: ids[item.Part], Type: "DEPENDS_ON", To: id}
		}
		out.Relationships = append(out.Relationships, rel)
		for _, ref := range licenseRef.FindAllString(item.License, -1) {
			if !refs[ref] {
				refs[ref] = true
				out.Extracted = append(out.Extracted, extracted{ID: ref, Name: strings.TrimPrefix(ref, "LicenseRef-"),
					Text: "See /usr/share/doc/" + item.Name + "/copyright in the image."})
			}
		}
	}
	data, err := json.MarshalIndent(out, "", "  ")
	return append(data, '\n'), err
}

func encodeItem(id string, item Item) spdxPackage {
	p := spdxPackage{ID: id, Name: item.Name, Version: item.Version, Location: noAssertion, Concluded: noAssertion,
		Declared: item.License, Copyright: noAssertion}
	if item.SHA256 != "" {
		p.Checksums = []checksum{{"SHA256", item.SHA256}}
	}
	if item.PURL != "" {
		p.Refs = []reference{{"PACKAGE-MANAGER", "purl", item.PURL}}
	}
	return p
}

var unsafe = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

func safe(name string) string { return unsafe.ReplaceAllString(name, "-") }
