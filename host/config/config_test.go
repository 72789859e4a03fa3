package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/config"
)

const gib = 1 << 30

var host = config.Host{CPUs: 8, Memory: 32 * gib}

// def is the default settings with a few others.
func def(cpus int, memory, disk int64, arch string) api.Settings {
	s := config.Default(config.Host{})
	s.CPUs, s.Memory, s.Disk, s.Arch = cpus, memory, disk, arch
	return s
}

func TestDefault(t *testing.T) {
	want := api.Settings{CPUs: 1, Memory: gib, Disk: 64 * gib, Ports: api.Ports{Address: "127.0.0.1", ClientAddress: true}, Network: api.Network{Loopback: true}, SSH: true}
	if diff := cmp.Diff(want, config.Default(config.Host{})); diff != "" {
		t.Error(diff)
	}
	for _, tc := range []struct {
		host config.Host
		want api.Settings
	}{
		{config.Host{CPUs: 1, Memory: 2 * gib}, def(1, gib, 64*gib, "")},
		{config.Host{CPUs: 2, Memory: 16*gib + 12345}, def(2, 4*gib, 64*gib, "")},
		{config.Host{CPUs: 64, Memory: 512 * gib}, def(4, 8*gib, 64*gib, "")},
	} {
		got := config.Default(tc.host)
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%+v: %s", tc.host, diff)
		}
		if err := config.Check(got, tc.host); err != nil {
			t.Errorf("%+v cannot have its own default: %v", tc.host, err)
		}
	}
	this, err := config.ThisHost()
	if err != nil || this.CPUs < 1 || this.Memory < 64<<20 {
		t.Errorf("this host: %+v, %v", this, err)
	}
}

func TestCheck(t *testing.T) {
	good := config.Default(host)
	for _, tc := range []struct {
		name   string
		change func(*api.Settings)
		code   api.Code
		text   string
	}{
		{"no CPU", func(s *api.Settings) { s.CPUs = 0 }, api.CodeConfig, "0 CPUs"},
		{"negative CPUs", func(s *api.Settings) { s.CPUs = -3 }, api.CodeConfig, "-3 CPUs"},
		{"too many CPUs", func(s *api.Settings) { s.CPUs = 9 }, api.CodeConfig, "this host has 8"},
		{"too little memory", func(s *api.Settings) { s.Memory = 100 << 20 }, api.CodeConfig, "100MiB"},
		{"negative memory", func(s *api.Settings) { s.Memory = -gib }, api.CodeConfig, "too few"},
		{"odd memory", func(s *api.Settings) { s.Memory = gib + 1 }, api.CodeConfig, "whole number of MiB"},
		{"too much memory", func(s *api.Settings) { s.Memory = 33 * gib }, api.CodeNoMemory, "33GiB of memory asked for: this host has 32GiB"},
		{"small disk", func(s *api.Settings) { s.Disk = gib }, api.CodeConfig, "1GiB"},
		{"odd disk", func(s *api.Settings) { s.Disk = 64*gib + 1 }, api.CodeConfig, "4 KiB blocks"},
		{"architecture", func(s *api.Settings) { s.Arch = "riscv64" }, api.CodeConfig, "riscv64"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := good
			tc.change(&s)
			err := config.Check(s, host)
			if api.CodeOf(err) != tc.code || err == nil || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("error %v: want code %s and %q", err, tc.code, tc.text)
			}
			if e, ok := err.(*api.Error); !ok || e.Hint == "" {
				t.Errorf("error %v gives no hint", err)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	def := api.Settings{CPUs: 3, Memory: 3 * gib, Disk: 30 * gib}
	for _, tc := range []struct {
		name, text string
		want       api.Settings
		err        string
	}{
		{"empty", "", def, ""},
		{"comments alone", "# nothing\n", def, ""},
		{"whole", "version: 1\ncpus: 2\nmemory: 4GiB\ndisk: 100GiB\narch: arm64\n", api.Settings{CPUs: 2, Memory: 4 * gib, Disk: 100 * gib, Arch: "arm64"}, ""},
		{"a part", "memory: 2048 mb\n", api.Settings{CPUs: 3, Memory: 2 * gib, Disk: 30 * gib}, ""},
		{"bytes", "memory: 1073741824", api.Settings{CPUs: 3, Memory: gib, Disk: 30 * gib}, ""},
		{"unknown key", "version: 1\ncpu: 2\n", def, "line 2: unknown key cpu"},
		{"not a number", "cpus: many\n", def, "line 1: cannot unmarshal"},
		{"no size", "version: 1\n\nmemory: lots\n", def, `line 3: "lots" is no size`},
		{"list for a size", "memory: [1, 2]\n", def, "line 1:"},
		{"not yaml", "cpus: 2\n\tmemory: 1\n", def, "line 2"},
		{"a list", "- a\n", def, "line 1"},
		{"twice", "cpus: 1\ncpus: 2\n", def, "line 2"},
		{"later version", "version: 2\nshares: []\n", def, "version 2, this program reads 1"},
		{"no version", "version: 0\n", def, "version 0"},
		{"overflow", "memory: 99999999999TiB\n", def, "line 1"},
		{"negative", "disk: -4GiB\n", def, "line 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.yaml")
			if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := config.Load(path, def)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
			switch {
			case tc.err == "" && err != nil:
				t.Error(err)
			case tc.err != "" && (api.CodeOf(err) != api.CodeConfig || !strings.Contains(err.Error(), tc.err) || !strings.HasPrefix(err.Error(), path) || strings.Contains(err.Error(), "\n")):
				t.Errorf("error %v: want one line with the file and %q", err, tc.err)
			}
		})
	}
}

func TestSave(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "config.yaml")
	for _, want := range []api.Settings{
		{CPUs: 2, Memory: 3 * gib, Disk: 64 * gib},
		{CPUs: 1, Memory: 1537 << 20, Disk: 64*gib + 4096, Arch: "arm64"},
	} {
		if err := config.Save(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := config.Load(path, api.Settings{})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	if err := config.Save(filepath.Join(dir, "no", "config.yaml"), api.Settings{}); err == nil {
		t.Error("saved into a directory that is not there")
	}
	if got, err := config.Load(filepath.Join(dir, "gone"), api.Settings{CPUs: 5}); err != nil || got.CPUs != 5 {
		t.Errorf("without a file: %+v, %v", got, err)
	}
	if _, err := config.Load(dir, api.Settings{}); err == nil {
		t.Error("read a directory")
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "17": 17, "1KiB": 1 << 10, "2MiB": 2 << 20, "3GiB": 3 * gib, "4TiB": 4 << 40, " 5 GB ": 5 * gib, "6g": 6 * gib, "1.5GiB": 3 * gib / 2, "0.0001 t": 104 << 20, "8388607TiB": 8388607 << 40,
	} {
		if got, err := config.ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "GiB", "G", "-1", "1.5", "1.5KiB", ".5GiB", "1.GiB", "1.-5GiB", "1.5.5GiB", "1.1234567GiB", "1GiBKiB", "1 K i B", "0x10", "8388608TiB", "9223372036854775808", "1e3"} {
		if got, err := config.ParseSize(text); err == nil {
			t.Errorf("%q was taken for %d", text, got)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	f.Add("4GiB")
	f.Add("12345")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := config.ParseSize(text)
		if err != nil {
			return
		}
		if again, err := config.ParseSize(config.FormatSize(n)); n < 0 || err != nil || again != n {
			t.Errorf("%q is %d, written %q, read %d, %v", text, n, config.FormatSize(n), again, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("version: 1\ncpus: 2\nmemory: 4GiB\ndisk: 100GiB\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		def := api.Settings{CPUs: 3, Memory: 3 * gib, Disk: 30 * gib}
		got, err := config.Parse(data, def)
		if err != nil && !cmp.Equal(got, def) {
			t.Errorf("with error %v came %+v", err, got)
		}
		if err == nil && (got.Memory < 0 || got.Disk < 0) {
			t.Errorf("%q gave %+v", data, got)
		}
	})
}
