//go:build linux

package agent

import (
	"context"
	"errors"
	"log/slog"
	gonet "net"
	"net/http"
	"time"

	"github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/guest/engine"
	"github.com/coracle-engine/coracle/guest/service"
	"github.com/coracle-engine/coracle/guest/watch"
	"github.com/mdlayher/vsock"
)

// port is a Service that listens on one vsock port.
type port struct {
	name   string
	listen func() (gonet.Listener, error)
	serve  func(ctx context.Context, l gonet.Listener) error
}

// Name implements service.Service.
func (p *port) Name() string { return p.name }

// Run implements service.Service. A listener that breaks is opened anew by the supervisor.
func (p *port) Run(ctx context.Context, ready func()) error {
	l, err := p.listen()
	if err != nil {
		return err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	ready()
	return p.serve(ctx, l)
}

// publishing is the Service that answers docker-proxy programs.
type publishing struct{ ports *watch.Ports }

// Name implements service.Service.
func (p *publishing) Name() string { return "published ports" }

// Run implements service.Service.
func (p *publishing) Run(ctx context.Context, ready func()) error {
	l, err := watch.Listen(watch.SocketPath)
	if err != nil {
		return err
	}
	ready()
	return p.ports.Serve(ctx, l)
}

// anyCID binds to every address this machine has or will have: the device may be plugged later (VMADDR_CID_ANY).
const anyCID = 0xFFFFFFFF

func fromHost(a gonet.Addr) bool {
	v, ok := a.(*vsock.Addr)
	return ok && v.ContextID == api.HostCID
}

// openPorts makes the services behind the guest's vsock ports; they start when the group runs.
func (g *guest) openPorts() (*service.Group, error) {
	log := g.agent.log
	listen := func(number uint32) func() (gonet.Listener, error) {
		return func() (gonet.Listener, error) {
			l, err := vsock.ListenContextID(anyCID, number, nil)
			if err != nil {
				return nil, err
			}
			return newGate(l, g.boot.Secret, fromHost, log), nil
		}
	}
	docker := &dockerPort{ready: g.agent.engineReady, socket: engine.Socket, log: log}
	shell := &shellPort{reaper: g.reaper, home: "/root", log: log}
	connections := watch.NewConnections(log, g.open, g.clients)
	serve := func(f func(context.Context, gonet.Conn)) func(context.Context, gonet.Listener) error {
		return func(ctx context.Context, l gonet.Listener) error { return streams(ctx, l, maxStreams, f) }
	}
	report := func(name, state, detail string) {
		if state == api.ServiceFailed {
			log.Error("a port is closed", "port", name, "err", detail)
		}
	}
	return service.NewGroup(report, service.DefaultPause,
		service.Unit{Service: &port{"agent", listen(api.PortAgent), serveAPI(g.agent, log)}},
		service.Unit{Service: &port{"docker", listen(api.PortDocker), serve(docker.serve)}},
		service.Unit{Service: &port{"shell", listen(api.PortShell), serve(shell.serve)}},
		service.Unit{Service: &port{"published ports", listen(api.PortConnect), serve(connections.Serve)}},
		service.Unit{Service: &port{"file events", listen(api.PortReplay), serve(g.shares.Serve)}},
	)
}

func serveAPI(a *agent, log *slog.Logger) func(ctx context.Context, l gonet.Listener) error {
	return func(ctx context.Context, l gonet.Listener) error {
		s := &http.Server{
			Handler: api.Handler(a, a), ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
			BaseContext: func(gonet.Listener) context.Context { return ctx },
		}
		defer s.Close()
		if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	}
}

// knock tells the host that the agent answers, once. Before the vsock device is there it waits for it.
func (g *guest) knock(ctx context.Context) {
	for {
		changed := g.uevents.Changed()
		err := knockOnce(ctx, g.boot.Secret)
		if err == nil {
			return
		}
		g.agent.log.Debug("knock", "err", err)
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

func knockOnce(ctx context.Context, secret []byte) error {
	conn, err := dialHost(ctx, api.PortKnock, secret)
	if err != nil {
		return err
	}
	return conn.Close()
}

// dialHost opens a greeted stream to a port of the host.
func dialHost(ctx context.Context, port uint32, secret []byte) (gonet.Conn, error) {
	conn, err := vsock.DialContext(ctx, api.HostCID, port, nil)
	if err != nil {
		return nil, err
	}
	if err := api.Greet(conn, secret); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}
