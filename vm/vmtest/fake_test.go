package vmtest

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-engine/coracle/vm"
)

// behaving is a fake guest that runs Behave.
func behaving(ctx context.Context, g *Guest) error {
	if err := g.Print("the guest is up"); err != nil {
		return err
	}
	g.Up()
	if err := Behave(ctx, g); !errors.Is(err, ErrPowerOff) {
		return err
	}
	return nil
}

func TestFake(t *testing.T) {
	Run(t, Subject{
		Driver: &Driver{Guest: behaving},
		Config: func(t *testing.T) vm.Config {
			return vm.Config{Name: "fake", CPUs: 1, Memory: 1 << 20, Console: filepath.Join(t.TempDir(), "console.log")}
		},
		Boot: 5 * time.Second, Settle: 5 * time.Second,
	})
}

func TestFakeErrors(t *testing.T) {
	boom := errors.New("boom")
	d := &Driver{ProbeErr: vm.ErrNotInstalled, StartErr: boom, Guest: behaving}
	if _, err := d.Probe(t.Context()); !errors.Is(err, vm.ErrNotInstalled) {
		t.Errorf("probe: %v", err)
	}
	m, err := d.Open(t.Context(), vm.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Start(t.Context()); !errors.Is(err, boom) {
		t.Errorf("start: %v, want %v", err, boom)
	}
	d.OpenErr = boom
	if _, err := d.Open(t.Context(), vm.Config{}); !errors.Is(err, boom) {
		t.Errorf("open: %v, want %v", err, boom)
	}
}

func TestFakeGuest(t *testing.T) {
	events := make(chan vm.Event, 1)
	release := make(chan struct{})
	d := &Driver{Guest: func(ctx context.Context, g *Guest) error {
		g.Up()
		g.Event(vm.Event{Kind: vm.EventDiskFull})
		if err := g.Handle(ctx, 1, func(c net.Conn) { c.Write([]byte(g.Config().Name)) }); err != nil {
			return err
		}
		select {
		case <-release:
			return errors.New("kernel panic")
		case <-ctx.Done():
			return nil
		}
	}}
	m, err := d.Open(t.Context(), vm.Config{Name: "boat"})
	if err != nil {
		t.Fatal(err)
	}
	m.(vm.Notifier).Notify(func(e vm.Event) { events <- e })
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := <-events; e.Kind != vm.EventDiskFull {
		t.Errorf("event %+v", e)
	}
	var c net.Conn
	for c == nil { // the guest is up before it listens
		if c, err = m.Dial(t.Context(), 1); err != nil && !errors.Is(err, vm.ErrRefused) {
			t.Fatal(err)
		}
	}
	defer c.Close()
	got := make([]byte, 4)
	if _, err := c.Read(got); err != nil || string(got) != "boat" {
		t.Errorf("guest said %q, %v", got, err)
	}
	close(release)
	if err := m.Wait(); !errors.Is(err, vm.ErrCrashed) {
		t.Errorf("wait: %v, want %v", err, vm.ErrCrashed)
	}
}
