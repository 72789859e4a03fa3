package program

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"unicode"
)

type buildinfoModule = debug.Module

// Module is a Go module that programs are linked from.
type Module struct {
	Path, Version string
	Sum           string // go.sum's h1: digest
}

// Modules returns every module that a set of programs was linked from, each path and version once, sorted. Modules
// without a version (our own) are left out.
func Modules(programs []*Program) []Module {
	seen := map[string]bool{}
	var out []Module
	for _, p := range programs {
		deps := append([]*buildinfoModule{&p.Info.Main}, p.Info.Deps...)
		for _, d := range deps {
			m := Module{Path: d.Path, Version: d.Version, Sum: d.Sum}
			if d.Replace != nil {
				m = Module{Path: d.Replace.Path, Version: d.Replace.Version, Sum: d.Replace.Sum}
			}
			if key := m.Path + "@" + m.Version; strings.HasPrefix(m.Version, "v") && !seen[key] {
				seen[key] = true
				out = append(out, m)
			}
		}
	}
	slices.SortFunc(out, func(a, b Module) int { return strings.Compare(a.Path+"@"+a.Version, b.Path+"@"+b.Version) })
	return out
}

// legal matches the files that a module's licence may ask to be handed on.
var legal = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|unlicense|patents)([.-].*)?$`)

// Legal reads m's licence and notice texts from the module cache modcache, by name. Sources like LICENSE.go are none.
func (m Module) Legal(modcache string) (map[string]string, error) {
	dir := filepath.Join(modcache, escape(m.Path)+"@"+escape(m.Version))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, e := range entries {
		if !e.Type().IsRegular() || !legal.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".go") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		out[e.Name()] = string(data)
	}
	return out, nil
}

// escape is the module cache's spelling: an exclamation mark and the small letter for each capital one (go.dev/ref/mod,
// "Module cache").
func escape(s string) string {
	var out strings.Builder
	for _, r := range s {
		if unicode.IsUpper(r) {
			out.WriteByte('!')
			r = unicode.ToLower(r)
		}
		out.WriteRune(r)
	}
	return out.String()
}

// marks are sentences that only one licence has, in text of single spaces and small letters, strongest first.
var marks = []struct{ spdx, mark string }{
	{"Apache-2.0", "apache license version 2.0"},
	{"Apache-2.0", "apache license, version 2.0"},
	{"MPL-2.0", "mozilla public license version 2.0"},
	{"MPL-2.0", "mozilla public license, version 2.0"},
	{"CC0-1.0", "cc0 1.0 universal"},
	{"Unlicense", "this is free and unencumbered software released into the public domain"},
	{"ISC", "permission to use, copy, modify, and distribute this software for any purpose with or without fee"},
	{"ISC", "permission to use, copy, modify, and/or distribute this software for any purpose with or without fee"},
	{"MIT", "permission is hereby granted, free of charge, to any person obtaining a copy"},
	{"BSD-3-Clause", "may be used to endorse or promote products derived from"},
	{"BSD-2-Clause", "redistributions in binary form must reproduce the above copyright notice"},
}

// Recognise returns the SPDX expression for a module's licence texts, or NOASSERTION where it knows none of them.
func Recognise(texts map[string]string) string {
	var out []string
	for name, text := range texts {
		if lower := strings.ToLower(name); strings.HasPrefix(lower, "notice") || strings.HasPrefix(lower, "patents") {
			continue
		}
		plain := strings.ToLower(strings.Join(strings.Fields(text), " "))
		for _, m := range marks {
			if strings.Contains(plain, m.mark) {
				if !slices.Contains(out, m.spdx) {
					out = append(out, m.spdx)
				}
				break
			}
		}
	}
	slices.Sort(out)
	if len(out) == 0 {
		return "NOASSERTION"
	}
	return strings.Join(out, " AND ")
}

// Licences joins the licence and notice texts of modules into one: each text once, below the modules that it is of.
func Licences(modules []Module, modcache string) ([]byte, error) {
	of := map[string][]string{}
	var order []string
	for _, m := range modules {
		texts, err := m.Legal(modcache)
		if err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(texts)) {
			text := texts[name]
			if of[text] == nil {
				order = append(order, text)
			}
			of[text] = append(of[text], m.Path+"@"+m.Version+" ("+name+")")
		}
	}
	var out bytes.Buffer
	out.WriteString("The licences and notices of the Go modules that programs in this image are linked from.\n")
	for _, text := range order {
		out.WriteString("\n" + strings.Repeat("=", 72) + "\n" + strings.Join(of[text], "\n") + "\n" + strings.Repeat("-", 72) + "\n")
		out.WriteString(strings.TrimSpace(text) + "\n")
	}
	return out.Bytes(), nil
}
