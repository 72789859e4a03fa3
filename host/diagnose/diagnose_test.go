package diagnose_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/diagnose"
	"github.com/coracle-engine/coracle/host/paths"
	"github.com/coracle-engine/coracle/vm"
	"github.com/coracle-engine/coracle/vm/vmtest"
)

// codes reads the codes from the source of host/api, so that no new one is forgotten.
func codes(t *testing.T) []api.Code {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../api/api.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []api.Code
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(v.Names[0].Name, "Code") {
			text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, api.Code(text))
		}
		return true
	})
	if len(all) < 15 {
		t.Fatalf("found %d codes: the search is broken", len(all))
	}
	return all
}

func TestTable(t *testing.T) {
	for _, code := range codes(t) {
		if a := diagnose.Table[code]; a.Cause == "" || a.Next == "" {
			t.Errorf("%s has no cause or no next step", code)
		}
	}
	if got, want := len(diagnose.Table), len(codes(t)); got != want {
		t.Errorf("the table has %d codes, host/api %d", got, want)
	}
}

func TestExplain(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code api.Code
		hint string
	}{
		{errors.New("odd"), api.CodeInternal, "coracle logs work"},
		{fmt.Errorf("qemu: %w", vm.ErrNotInstalled), api.CodeNotInstalled, "apt-get install"},
		{errors.Join(fmt.Errorf("a: %w", vm.ErrNotSupported), fmt.Errorf("b: %w", vm.ErrNotInstalled)), api.CodeNotInstalled, "install"},
		{fmt.Errorf("%w: %w", vm.ErrGuestFailed, context.DeadlineExceeded), api.CodeGuestFailed, "coracle logs work"},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.ENOSPC}, api.CodeDiskFull, "free some space"},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EACCES}, api.CodePermission, "CORACLE_HOME"},
		{fmt.Errorf("x: %w", paths.ErrTooLong), api.CodePathTooLong, "shorter"},
		{fmt.Errorf("x: %w", paths.ErrName), api.CodeName, "letters"},
		{fmt.Errorf("outer: %w", &api.Error{Code: api.CodeDataDisk, Message: "inner", Hint: "own"}), api.CodeDataDisk, "own"},
		{fmt.Errorf("outer: %w", &api.Error{Code: api.CodeCrashed, Message: "inner"}), api.CodeCrashed, "coracle logs work"},
	} {
		got := diagnose.Explain(tc.err, "work")
		if got.Code != tc.code || got.Message != tc.err.Error() || !strings.Contains(got.Hint, tc.hint) || strings.Contains(got.Hint, "NAME") {
			t.Errorf("%v became %+v: want code %s and hint %q", tc.err, got, tc.code, tc.hint)
		}
	}
	if diagnose.Explain(nil, "x") != nil {
		t.Error("made an error of nothing")
	}
	if got := diagnose.Explain(errors.New("odd"), "").Hint; strings.Contains(got, "NAME") || strings.Contains(got, "  ") {
		t.Errorf("without a machine: %q", got)
	}
	own := &api.Error{Code: api.CodeCrashed, Message: "m"}
	diagnose.Explain(own, "work")
	if own.Hint != "" {
		t.Error("changed the error it was given")
	}
}

// subject is a host where all is well.
func subject(t *testing.T) diagnose.Subject {
	t.Helper()
	home, err := os.MkdirTemp("", "h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	return diagnose.Subject{
		Home: home, Drivers: []vm.Driver{&vmtest.Driver{}},
		Image:  func() (string, error) { return "version 1", nil },
		Space:  func() (int64, int64, error) { return 100 << 30, 1 << 28, nil },
		Memory: 16 << 30, Default: 4 << 30,
	}
}

func TestChecks(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, s *diagnose.Subject)
		check  string
		level  string
		code   api.Code
	}{
		{"home is a file", func(t *testing.T, s *diagnose.Subject) {
			s.Home = filepath.Join(s.Home, "file")
			if err := os.WriteFile(s.Home, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "home", api.CheckFail, api.CodePermission},
		{"home is not there yet", func(_ *testing.T, s *diagnose.Subject) { s.Home += "/a/b" }, "home", api.CheckOK, ""},
		{"others write to home", func(_ *testing.T, s *diagnose.Subject) { os.Chmod(s.Home, 0o777) }, "home", api.CheckWarn, api.CodePermission},
		{"long home", func(_ *testing.T, s *diagnose.Subject) { s.Home += "/" + strings.Repeat("x", 100) }, "socket paths", api.CheckFail, api.CodePathTooLong},
		{"longish home", func(_ *testing.T, s *diagnose.Subject) { s.Home = "/" + strings.Repeat("x", 60) }, "socket paths", api.CheckWarn, api.CodePathTooLong},
		{"full disk", func(_ *testing.T, s *diagnose.Subject) {
			s.Space = func() (int64, int64, error) { return 1, 1 << 28, nil }
		}, "free disk", api.CheckFail, api.CodeDiskFull},
		{"little disk", func(_ *testing.T, s *diagnose.Subject) {
			s.Space = func() (int64, int64, error) { return 1 << 30, 1 << 28, nil }
		}, "free disk", api.CheckWarn, api.CodeDiskFull},
		{"unknown disk", func(_ *testing.T, s *diagnose.Subject) {
			s.Space = func() (int64, int64, error) { return 0, 0, os.ErrPermission }
		}, "free disk", api.CheckFail, api.CodePermission},
		{"little memory", func(_ *testing.T, s *diagnose.Subject) { s.Memory, s.Default = 1<<30, 1<<30 }, "memory", api.CheckWarn, api.CodeNoMemory},
		{"no driver", func(_ *testing.T, s *diagnose.Subject) { s.Drivers = nil }, "hypervisor", api.CheckFail, api.CodeNotSupported},
		{"no hypervisor", func(_ *testing.T, s *diagnose.Subject) {
			s.Drivers = []vm.Driver{&vmtest.Driver{ProbeErr: vm.ErrNotInstalled}}
		}, "hypervisor fake", api.CheckFail, api.CodeNotInstalled},
		{"slow hypervisor", func(*testing.T, *diagnose.Subject) {}, "accelerator", api.CheckWarn, ""},
		{"no image", func(_ *testing.T, s *diagnose.Subject) {
			s.Image = func() (string, error) { return "", api.Errorf(api.CodeNoImage, "none") }
		}, "guest image", api.CheckFail, api.CodeNoImage},
		{"failed machine", func(t *testing.T, s *diagnose.Subject) {
			machine(t, s.Home, "bad", `{"state":"failed","error":{"code":"vm-crashed","message":"m"}}`)
		}, "machine bad", api.CheckWarn, api.CodeCrashed},
		{"good machine", func(t *testing.T, s *diagnose.Subject) { machine(t, s.Home, "good", `{"state":"stopped"}`) }, "machine good", api.CheckOK, ""},
		{"few watches", func(_ *testing.T, s *diagnose.Subject) { s.Watches = 8192 }, "file events", api.CheckWarn, ""},
		{"many watches", func(_ *testing.T, s *diagnose.Subject) { s.Watches = 1 << 20 }, "file events", api.CheckOK, ""},
		{"settings", func(t *testing.T, s *diagnose.Subject) { settings(t, s, api.Settings{}, nil) }, "settings of m", api.CheckOK, ""},
		{"settings that nobody can read", func(t *testing.T, s *diagnose.Subject) {
			settings(t, s, api.Settings{}, &api.Error{Code: api.CodeConfig, Message: "line 2", Hint: "edit it"})
		}, "settings of m", api.CheckFail, api.CodeConfig},
		{"a share that is gone", func(t *testing.T, s *diagnose.Subject) {
			settings(t, s, api.Settings{Shares: []api.Share{{Path: s.Home}, {Path: s.Home + "/gone"}}}, nil)
		}, "settings of m", api.CheckWarn, api.CodeShare},
		{"another host's address", func(t *testing.T, s *diagnose.Subject) {
			settings(t, s, api.Settings{Ports: api.Ports{Address: "192.0.2.1"}}, nil)
		}, "settings of m", api.CheckWarn, api.CodeConfig},
		{"this host's address", func(t *testing.T, s *diagnose.Subject) {
			settings(t, s, api.Settings{Shares: []api.Share{{Path: s.Home}}, Ports: api.Ports{Address: "::1"}}, nil)
		}, "settings of m", api.CheckOK, ""},
		{"old QEMU", func(_ *testing.T, s *diagnose.Subject) { s.Drivers = []vm.Driver{old{&vmtest.Driver{}, "7.2.22"}} }, "emulation", api.CheckWarn, ""},
		{"stray directory", func(t *testing.T, s *diagnose.Subject) { machine(t, s.Home, "Stray", "") }, `machine "Stray"`, api.CheckWarn, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := subject(t)
			tc.change(t, &s)
			for _, c := range diagnose.Checks(t.Context(), s) {
				if c.Name != tc.check {
					continue
				}
				if c.Level != tc.level || c.Code != tc.code || c.Detail == "" || (c.Level != api.CheckOK) != (c.Hint != "") {
					t.Errorf("%+v: want level %s, code %q, a detail, and a hint where it is not well", c, tc.level, tc.code)
				}
				return
			}
			t.Errorf("there is no check %q", tc.check)
		})
	}
}

// settings gives the subject a machine m with settings, or none that can be read.
func settings(t *testing.T, s *diagnose.Subject, what api.Settings, err error) {
	t.Helper()
	machine(t, s.Home, "m", `{"state":"stopped"}`)
	s.Settings = func(string) (api.Settings, error) { return what, err }
}

// old is a driver that emulates, of a version.
type old struct {
	vm.Driver
	version string
}

func (o old) Probe(context.Context) (vm.Capabilities, error) {
	return vm.Capabilities{Accelerator: "tcg", Version: o.version, Reason: "no KVM"}, nil
}

func TestNewQEMU(t *testing.T) {
	s := subject(t)
	for _, version := range []string{"8.1.0", "10.0.2", ""} {
		s.Drivers = []vm.Driver{old{&vmtest.Driver{}, version}}
		for _, c := range diagnose.Checks(t.Context(), s) {
			if c.Name == "emulation" {
				t.Errorf("%q: %+v", version, c)
			}
		}
	}
}

func machine(t *testing.T, home, name, last string) {
	t.Helper()
	dir := filepath.Join(paths.Machines(home), name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "last.json"), []byte(last), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestChecksLeaveNothing: looking changes nothing.
func TestChecksLeaveNothing(t *testing.T) {
	s := subject(t)
	home := s.Home
	s.Home += "/sub"
	diagnose.Checks(t.Context(), s)
	entries, err := os.ReadDir(home)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(0, len(entries)); diff != "" {
		t.Errorf("left behind: %v", entries)
	}
}
