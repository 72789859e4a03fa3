package main

import (
	"io"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/config"
	"github.com/coracle-engine/coracle/host/paths"
)

func testPlace(t *testing.T) paths.Machine {
	t.Helper()
	place, err := paths.ForMachine(newProgram(t).home, "work")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(place.RunDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	return place
}

// TestSettings puts what a user asks for over what the machine has, and keeps it when the disk is there.
func TestSettings(t *testing.T) {
	host, err := config.ThisHost()
	if err != nil {
		t.Fatal(err)
	}
	if host.Memory < 2<<30 {
		t.Skip("a host with less than 2 GiB of memory: use a larger one")
	}
	place, def := testPlace(t), config.Default(host)
	with := func(cpus int, memory, disk int64, arch string) api.Settings {
		s := def
		s.CPUs, s.Memory, s.Disk, s.Arch = cpus, memory, disk, arch
		return s
	}
	for _, step := range []struct {
		name string
		o    options
		want api.Settings
		code api.Code
	}{
		{"nothing asked", options{}, def, ""},
		{"all asked", options{cpus: 1, memory: 1 << 30, disk: 8 << 30, arch: "arm64"}, with(1, 1<<30, 8<<30, "arm64"), ""},
		{"kept", options{}, with(1, 1<<30, 8<<30, "arm64"), ""},
		{"one asked", options{memory: 1 << 29}, with(1, 1<<29, 8<<30, "arm64"), ""},
		{"impossible", options{memory: 1}, api.Settings{}, api.CodeConfig},
		{"shrunk", options{disk: 4 << 30, cpus: 2}, api.Settings{}, api.CodeConfig},
		{"what failed is not kept", options{}, with(1, 1<<29, 8<<30, "arm64"), ""},
	} {
		f := &files{place: place}
		var kept bool
		if f.settings, kept, err = step.o.settings(place.Dir, place); err == nil {
			f.keep = !kept
			_, err = f.Disk(min(f.settings.Disk, 8<<30))
		}
		if step.code != "" {
			if api.CodeOf(err) != step.code {
				t.Errorf("%s: error is %v: want code %s", step.name, err, step.code)
			}
			continue
		}
		if diff := cmp.Diff(step.want, f.settings); diff != "" || err != nil {
			t.Errorf("%s: error %v, settings (-want +got):\n%s", step.name, err, diff)
		}
	}
}

// TestSettingsByHand leaves a file as its owner wrote it, until something else is asked for.
func TestSettingsByHand(t *testing.T) {
	place := testPlace(t)
	const text = "version: 1\ncpus: 1 # it is an old computer\nmemory: 512MiB\ndisk: 8GiB\n"
	writeFile(t, place.Config(), text)
	for _, step := range []struct {
		o    options
		want bool // the text stays
	}{{options{}, true}, {options{cpus: 1, memory: 512 << 20}, true}, {options{memory: 513 << 20}, false}} {
		f := &files{place: place}
		s, kept, err := step.o.settings(place.Dir, place)
		if err != nil {
			t.Fatal(err)
		}
		f.settings, f.keep = s, !kept
		if _, err := f.Disk(s.Disk); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(place.Config()); err != nil || (string(data) == text) != step.want {
			t.Errorf("after %+v the file is %s, error %v", step.o, data, err)
		}
	}
}

// TestParseRun reads what host/api's Launch writes.
func TestParseRun(t *testing.T) {
	o, err := parseRun([]string{"--since", "1000000000", "--context=false", "--cpus", "3", "--memory", "5", "--disk", "6", "--arch", "arm64", "--", "work"})
	want := options{name: "work", cpus: 3, memory: 5, disk: 6, arch: "arm64", since: time.Unix(1, 0)}
	if diff := cmp.Diff(want, o, cmp.AllowUnexported(options{})); diff != "" || err != nil {
		t.Errorf("error %v, options (-want +got):\n%s", err, diff)
	}
	before := time.Now()
	if o, err = parseRun([]string{"work"}); err != nil || !o.context || o.since.Before(before) {
		t.Errorf("error %v, options %+v", err, o)
	}
}

// TestSave leaves a status that is found when no process answers; a directory that is gone is no disaster.
func TestSave(t *testing.T) {
	place := testPlace(t)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	save(place, api.Status{Name: "work", State: api.Running, PID: 1, Settings: api.Settings{CPUs: 3}}, log)
	st, err := api.New(place).Status(t.Context())
	if err != nil || st.State != api.Failed || st.Error == nil || st.Error.Code != api.CodeCrashed || st.PID != 0 || st.Settings.CPUs != 3 {
		t.Errorf("after a death while running: %+v, error %v", st, err)
	}
	save(place, api.Status{State: api.Stopped}, log)
	if st, err := api.New(place).Status(t.Context()); err != nil || st.State != api.Stopped || st.Error != nil {
		t.Errorf("after a stop: %+v, error %v", st, err)
	}
	os.RemoveAll(place.Dir)
	save(place, api.Status{}, log)
}
