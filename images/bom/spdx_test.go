package bom

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func sample() Document {
	return Document{Image: "guest-amd64", Version: "1+x", Created: time.Unix(1_700_000_000, 0), Items: []Item{
		{Name: "bash", Version: "5", License: "GPL-3.0-or-later AND LicenseRef-odd", SHA256: strings.Repeat("a", 64), PURL: "pkg:deb/debian/bash@5"},
		{Name: "runc", Version: "v1", License: "Apache-2.0"},
		{Name: "example.com/m_x", Version: "v0", License: "NOASSERTION", Part: "runc"},
		{Name: "zlib", Version: "1", License: "LicenseRef-odd"},
	}}
}

func TestEncode(t *testing.T) {
	data, err := Encode(sample())
	if err != nil {
		t.Fatal(err)
	}
	again, err := Encode(sample())
	if err != nil || string(again) != string(data) {
		t.Errorf("the same document gives other bytes, error %v", err)
	}
	var d spdxDocument
	if err := json.Unmarshal(data, &d); err != nil {
		t.Fatal(err)
	}
	if d.Version != "SPDX-2.3" || d.License != "CC0-1.0" || d.Creation.Created != "2023-11-14T22:13:20Z" || d.Namespace == "" {
		t.Errorf("head is %+v", d)
	}
	ids := map[string]bool{d.ID: true}
	for _, p := range d.Packages {
		if ids[p.ID] || !strings.HasPrefix(p.ID, "SPDXRef-") || strings.ContainsAny(p.ID, "_/ ") {
			t.Errorf("package %s has identifier %q", p.Name, p.ID)
		}
		ids[p.ID] = true
	}
	var rels []string
	for _, r := range d.Relationships {
		if !ids[r.From] || !ids[r.To] {
			t.Errorf("relationship %+v leads nowhere", r)
		}
		rels = append(rels, r.From+" "+r.Type+" "+r.To)
	}
	want := []string{
		"SPDXRef-DOCUMENT DESCRIBES SPDXRef-image",
		"SPDXRef-image CONTAINS SPDXRef-1-bash",
		"SPDXRef-image CONTAINS SPDXRef-2-runc",
		"SPDXRef-2-runc DEPENDS_ON SPDXRef-3-example.com-m-x",
		"SPDXRef-image CONTAINS SPDXRef-4-zlib",
	}
	if diff := cmp.Diff(want, rels); diff != "" {
		t.Errorf("relationships (-want +got):\n%s", diff)
	}
	if len(d.Extracted) != 1 || d.Extracted[0].ID != "LicenseRef-odd" || !strings.Contains(d.Extracted[0].Text, "doc/bash/copyright") {
		t.Errorf("extracted licences are %+v", d.Extracted)
	}
}

func TestEncodePartOfNothing(t *testing.T) {
	d := sample()
	d.Items[2].Part = "gone"
	if _, err := Encode(d); err == nil || !strings.Contains(err.Error(), "part of gone") {
		t.Errorf("error is %v", err)
	}
}
