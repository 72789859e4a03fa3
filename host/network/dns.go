package network

import (
	"context"
	"log/slog"
)

type resolver struct{}

func newResolver(addresses, *slog.Logger) *resolver { return &resolver{} }

func (r *resolver) serveStream(ctx context.Context, g *guestConn)          {}
func (s *segment) query(ctx context.Context, port uint16, question []byte) {}
