package drivers

import (
	"errors"
	"log/slog"
	"runtime"
	"testing"

	"github.com/coracle-engine/coracle/vm"
)

func TestDefault(t *testing.T) {
	d, err := Default(slog.New(slog.DiscardHandler), "")
	if runtime.GOOS != "linux" {
		if !errors.Is(err, vm.ErrNotSupported) {
			t.Errorf("error %v, want %v", err, vm.ErrNotSupported)
		}
		return
	}
	if err != nil || d.Name() != "qemu" {
		t.Errorf("driver %v, error %v; want qemu", d, err)
	}
}

func TestNamesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range All(slog.New(slog.DiscardHandler), "") {
		if d.Name() == "" || seen[d.Name()] {
			t.Errorf("driver's name %q is empty or used twice", d.Name())
		}
		seen[d.Name()] = true
	}
}
