package main

import (
	"context"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/machine"
	"github.com/coracle-engine/coracle/vm"
)

// around is what a machine has on this host beside its hypervisor.
type around struct{}

func (a *around) Prepare(s api.Settings) (guestapi.Spec, error) {
	return guestapi.Spec{Network: guestapi.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", DNS: []string{"10.0.2.3"}}}, nil
}

func (a *around) Attach(*vm.Config) {}

func (a *around) Serve(ctx context.Context, g machine.Guest) { <-ctx.Done() }

func (a *around) Publish(_ context.Context, list []guestapi.Forward) []guestapi.Publication {
	var out []guestapi.Publication
	for _, f := range list {
		out = append(out, guestapi.Publication{ID: f.ID})
	}
	return out
}

func (a *around) Report(*api.Status) {}
