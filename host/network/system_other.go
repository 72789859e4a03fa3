//go:build !darwin && !windows

package network

import (
	"context"

	"github.com/coracle-engine/coracle/guest/api"
)

// systemProxy finds nothing: here the environment says all.
func systemProxy(context.Context) (api.Proxy, error) { return api.Proxy{}, nil }

func hostCertificates(_ context.Context, b *bundle) error { return b.addHost("/") }
