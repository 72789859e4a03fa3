package main

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBundledIsGo(t *testing.T) {
	if _, err := parser.ParseFile(token.NewFileSet(), "bundled.go.txt", bundled, parser.AllErrors); err != nil {
		t.Error(err)
	}
}

func TestEveryClientIsPinned(t *testing.T) {
	gomod, err := os.ReadFile("../clients/go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range clients {
		if !strings.Contains(string(gomod), "\t"+c.module+" v") || !strings.Contains(string(gomod), "\t"+c.pkg+"\n") {
			t.Errorf("packaging/clients/go.mod does not pin %s with its tool %s", c.module, c.pkg)
		}
		for name, value := range c.strings(module{Path: c.module, Version: "v1.2.3+incompatible", Time: "now", Sum: "h1:x="}) {
			if strings.HasSuffix(name, ".Version") && strings.TrimPrefix(value, "v") != "1.2.3" {
				t.Errorf("%s is %q for v1.2.3+incompatible", name, value)
			}
			if strings.ContainsAny(value, " '\"") {
				t.Errorf("%s is %q, which the linker's flags cannot carry", name, value)
			}
		}
	}
}

func TestLanguageVersion(t *testing.T) {
	for text, want := range map[string]string{
		"module x\n\ngo 1.26.0\n\nrequire y v1.0.0\n": "go 1.26.0",
		"// go 1.1\nmodule x\n":                       "",
		"":                                            "",
	} {
		path := filepath.Join(t.TempDir(), "vendor.mod")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := languageVersion(path)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("languageVersion of %q: %q, %v: want %q", text, got, err, want)
		}
	}
}
