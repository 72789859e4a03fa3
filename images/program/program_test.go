package program

import (
	"context"
	"debug/buildinfo"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRecognise(t *testing.T) {
	const apache = "                                 Apache License\n                           Version 2.0, January 2004\n"
	const mit = "Permission is hereby granted, free of charge, to any\nperson obtaining a copy of this software"
	const bsd2 = "Redistributions in binary form must reproduce the above\n   copyright notice"
	for name, test := range map[string]struct {
		texts map[string]string
		want  string
	}{
		"apache":       {map[string]string{"LICENSE": apache}, "Apache-2.0"},
		"mit":          {map[string]string{"LICENSE.md": mit}, "MIT"},
		"bsd2":         {map[string]string{"LICENSE": bsd2}, "BSD-2-Clause"},
		"bsd3":         {map[string]string{"LICENSE": bsd2 + "\nmay be used to endorse or promote products derived from"}, "BSD-3-Clause"},
		"mpl":          {map[string]string{"LICENSE": "Mozilla Public License, version 2.0"}, "MPL-2.0"},
		"two":          {map[string]string{"LICENSE": apache, "LICENSE.MIT": mit}, "Apache-2.0 AND MIT"},
		"notice alone": {map[string]string{"NOTICE": apache}, "NOASSERTION"},
		"none":         {nil, "NOASSERTION"},
		"unknown":      {map[string]string{"LICENSE": "Do as you like."}, "NOASSERTION"},
	} {
		if got := Recognise(test.texts); got != test.want {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
	}
}

// modcache makes a module cache of one module.
func modcache(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"example.com/!big/x@v1.0.0/LICENSE": "big text", "example.com/!big/x@v1.0.0/NOTICE.txt": "notice",
		"example.com/!big/x@v1.0.0/license.go": "package x", "example.com/!big/x@v1.0.0/README": "readme",
		"example.com/y@v0.1.0/LICENSE": "big text",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLicences(t *testing.T) {
	dir := modcache(t)
	x, y := Module{Path: "example.com/Big/x", Version: "v1.0.0"}, Module{Path: "example.com/y", Version: "v0.1.0"}
	texts, err := x.Legal(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"LICENSE": "big text", "NOTICE.txt": "notice"}, texts); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
	all, err := Licences([]Module{x, y}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(all); strings.Count(got, "big text") != 1 ||
		!strings.Contains(got, "example.com/Big/x@v1.0.0 (LICENSE)\nexample.com/y@v0.1.0 (LICENSE)\n---") {
		t.Errorf("licences are:\n%s", got)
	}
	if _, err := Licences([]Module{{Path: "example.com/gone", Version: "v1.0.0"}}, dir); err == nil {
		t.Error("a module that is not in the cache gives no error")
	}
}

func TestModules(t *testing.T) {
	info := func(main *buildinfoModule, deps ...*buildinfoModule) *Program {
		return &Program{Info: &buildinfo.BuildInfo{Main: *main, Deps: deps}}
	}
	old := &buildinfoModule{Path: "b", Version: "v1.0.0", Replace: &buildinfoModule{Path: "c", Version: "v3.0.0", Sum: "h1:x"}}
	got := Modules([]*Program{
		info(&buildinfoModule{Path: "ours", Version: "(devel)"}, &buildinfoModule{Path: "z", Version: "v1.0.0"}, old),
		info(&buildinfoModule{Path: "a", Version: "v2.0.0"}, &buildinfoModule{Path: "z", Version: "v1.0.0"}),
	})
	want := []Module{{Path: "a", Version: "v2.0.0"}, {Path: "c", Version: "v3.0.0", Sum: "h1:x"}, {Path: "z", Version: "v1.0.0"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
}

// TestEngineSetsVersions holds that no program of the engine is built with its default version.
func TestEngineSetsVersions(t *testing.T) {
	m := module{Version: "v9.8.7-beta.1", Time: time.Unix(0, 0)}
	for _, r := range engine {
		all := strings.Join(r.set(m), " ")
		if r.name != "runc" && !strings.Contains(all, "9.8.7-beta.1") {
			t.Errorf("%s is built with %q", r.name, all)
		}
		if r.seccomp != (r.name == "runc") || !strings.HasPrefix(r.pkg, r.module) {
			t.Errorf("%s: recipe %+v", r.name, r)
		}
	}
}

// TestCgoNamesPackages fakes a machine without C compilers.
func TestCgoNamesPackages(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for arch, want := range map[string]string{
		"amd64": "libc6-dev", "arm64": "libc6-dev", "riscv64": "no C compiler is known for riscv64",
	} {
		_, _, err := Builder{Arch: arch}.cgo(context.Background())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v: want one with %q", arch, err, want)
		}
	}
}

func TestPrebuilt(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Prebuilt(self, "1")
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "coracle-guest" || p.Version != "1" || p.Content.Size == 0 {
		t.Errorf("program is %+v", p)
	}
	text := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Prebuilt(text, "1"); err == nil {
		t.Error("a script is taken for a Go program")
	}
}
