package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	guestapi "github.com/coracle-engine/coracle/guest/api"
	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/dockerproxy"
	"github.com/coracle-engine/coracle/host/forward"
	"github.com/coracle-engine/coracle/host/machine"
	"github.com/coracle-engine/coracle/host/network"
	"github.com/coracle-engine/coracle/host/paths"
	"github.com/coracle-engine/coracle/host/share"
	"github.com/coracle-engine/coracle/host/share/notify"
	"github.com/coracle-engine/coracle/host/sshagent"
	"github.com/coracle-engine/coracle/host/wake"
	"github.com/coracle-engine/coracle/vm"
)

// around is what a machine has on this host beside its hypervisor: a file server, a network, open ports and a policy for its
// Docker socket, each of which follows the settings. It is made before the machine starts and closed after its end.
type around struct {
	log      *slog.Logger
	home     string // CORACLE_HOME
	watcher  *notify.Watcher
	files    *share.Server // nil where this host cannot serve files
	network  *network.Network
	ports    *forward.Forwarder
	policy   *dockerproxy.Shares
	applying sync.Mutex // held while settings come into force

	mu     sync.Mutex
	shared []api.Shared
	guest  *machine.Guest // nil while there is none
}

// newAround makes what is around the machine at place.
func newAround(home string, place paths.Machine, log *slog.Logger) (*around, error) {
	a := &around{log: log, home: home}
	a.policy = &dockerproxy.Shares{
		Machine: place.Name, Command: "coracle config add shares", Sockets: []string{place.DockerSocket()}, Hidden: a.hidden,
	}
	if place.Name != "default" {
		a.policy.Command = "coracle config --machine " + place.Name + " add shares"
	}
	var err error
	if a.network, err = network.New(network.Config{Log: log, Loopback: true}); err != nil {
		return nil, fmt.Errorf("make network: %w", err)
	}
	if a.ports, err = forward.New(forward.Config{Log: log, Dial: a.dial, Address: "127.0.0.1"}); err != nil {
		a.close()
		return nil, fmt.Errorf("open ports: %w", err)
	}
	if a.watcher, err = notify.New(); err != nil {
		log.Warn("files of the host cannot be watched: the guest remembers nothing of them for long", "err", err)
	}
	if err := os.MkdirAll(place.Owners(), 0o700); err != nil {
		a.close()
		return nil, err
	}
	cfg := share.Config{Log: log, Dir: place.Owners(), Hidden: []string{home}}
	if a.watcher != nil {
		cfg.Watcher = a.watcher
	}
	if a.files, err = share.New(cfg); err != nil {
		a.close()
		return nil, fmt.Errorf("serve files: %w", err)
	}
	return a, nil
}

func (a *around) close() {
	if a.ports != nil {
		a.ports.Close()
	}
	if a.network != nil {
		a.network.Close()
	}
	if a.files != nil {
		if err := a.files.Close(); err != nil {
			a.log.Error("close file server", "err", err)
		}
	}
	if a.watcher != nil {
		if err := a.watcher.Close(); err != nil {
			a.log.Error("close file watcher", "err", err)
		}
	}
}

// tag names a share in the guest's file system. It is made of the path alone, so that a share keeps its place there when
// others come and go.
func tag(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:8])
}

// Prepare implements machine.Around.
func (a *around) Prepare(ctx context.Context, s api.Settings) (guestapi.Spec, error) {
	a.applying.Lock()
	defer a.applying.Unlock()
	spec := guestapi.Spec{Network: a.network.Guest(), Daemon: s.Engine, SSHAgent: s.SSH, ClientAddress: s.Ports.ClientAddress}
	spec.Network.Host = a.network.HostAddress().String()
	var err error
	// Files that the settings name were looked at when they were checked; what else cannot be used is no reason not to start.
	if spec.Certificates, err = network.Certificates(ctx, s.Network.Certificates); err != nil {
		a.log.Warn("certificates", "err", err)
	}
	proxy := guestapi.Proxy{HTTP: s.Network.HTTPProxy, HTTPS: s.Network.HTTPSProxy, No: s.Network.NoProxy}
	if spec.Proxy, err = a.network.Proxy(ctx, proxy, os.Getenv); err != nil {
		a.log.Warn("proxy", "err", err)
	}
	if err := a.ports.SetAddress(ctx, s.Ports.Address); err != nil {
		return spec, &api.Error{Code: api.CodeConfig, Message: err.Error(), Hint: "run `coracle config set ports.address 127.0.0.1`"}
	}
	a.network.SetLoopback(s.Network.Loopback)
	spec.Shares = a.share(s.Shares)
	return spec, nil
}

// share serves those of shares that can be, and returns what the guest is to show.
func (a *around) share(shares []api.Share) []guestapi.Share {
	var served []share.Share
	var shown []guestapi.Share
	var names []string
	var all []api.Shared
	for _, s := range shares {
		g := guestapi.Share{Tag: tag(s.Path), Path: s.Path, ReadOnly: s.ReadOnly}
		err := g.Check()
		if err == nil {
			err = directory(s.Path)
		}
		told := api.Shared{Share: s}
		if err != nil {
			a.log.Warn("not shared", "path", s.Path, "err", err)
			told.Error = err.Error()
		} else {
			served = append(served, share.Share{Tag: g.Tag, Path: s.Path, ReadOnly: s.ReadOnly, Secrets: s.Secrets})
			shown = append(shown, g)
			names = append(names, s.Path)
		}
		all = append(all, told)
	}
	if err := a.files.SetShares(served); err != nil {
		a.log.Error("serve shares", "err", err)
	}
	a.policy.SetShares(names)
	a.mu.Lock()
	a.shared = all
	a.mu.Unlock()
	return shown
}

// directory is why there is no directory at path.
func directory(path string) error {
	st, err := os.Stat(path)
	if err == nil && !st.IsDir() {
		err = fmt.Errorf("%s is not a directory", path)
	}
	return err
}

// hidden implements dockerproxy.Shares.Hidden.
func (a *around) hidden(path string) (dir, remedy string) {
	if within(path, a.home) {
		return a.home, ""
	}
	home, _ := os.UserHomeDir()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.shared {
		if s.Secrets || !within(path, s.Path) {
			continue
		}
		for _, dir := range secretsOf(s.Path, home) {
			if within(path, dir) && !within(s.Path, dir) {
				return dir, "coracle config add shares " + s.Path + ":secrets"
			}
		}
	}
	return "", ""
}

// secretsOf is where credentials lie that a share of root does not show.
func secretsOf(root, home string) []string {
	var dirs []string
	for _, secret := range share.Secrets {
		dirs = append(dirs, filepath.Join(root, secret))
	}
	if home != "" {
		for _, secret := range slices.Concat(share.Secrets, share.HomeSecrets) {
			dirs = append(dirs, filepath.Join(home, secret))
		}
	}
	return dirs
}

func within(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, dir)
	return ok && (rest == "" || rest[0] == filepath.Separator)
}

// Attach implements machine.Around.
func (a *around) Attach(cfg *vm.Config) {
	cfg.FileSystem, cfg.FileSystemTag = a.files, guestapi.ShareTag
	cfg.Network.MTU = a.network.Guest().MTU
	cfg.Network.Frames = a.network.Frames
}

// Serve implements machine.Around.
func (a *around) Serve(ctx context.Context, g machine.Guest) {
	a.mu.Lock()
	a.guest = &g
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.guest = nil
		a.mu.Unlock()
	}()
	var serving sync.WaitGroup
	defer serving.Wait()
	serving.Go(func() {
		err := a.files.Replay(ctx, func(ctx context.Context) (net.Conn, error) { return g.Dial(ctx, guestapi.PortReplay) })
		if ctx.Err() == nil {
			a.log.Error("the guest is told of no more changes of files", "err", err)
		}
	})
	serving.Go(func() {
		err := sshagent.Serve(ctx, g.SSH, g.Secret, func() string { return os.Getenv("SSH_AUTH_SOCK") }, a.log)
		if err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) { // closed: the machine has ended
			a.log.Error("the ssh agent is out of reach", "err", err)
		}
	})
	if err := wake.Watch(ctx, g.Woke); ctx.Err() == nil {
		a.log.Warn("the host's sleep cannot be noticed", "err", err)
	}
}

// dial reaches the guest that runs now.
func (a *around) dial(ctx context.Context, port uint32) (net.Conn, error) {
	a.mu.Lock()
	g := a.guest
	a.mu.Unlock()
	if g == nil {
		return nil, vm.ErrNotRunning
	}
	return g.Dial(ctx, port)
}

// Publish implements machine.Around.
func (a *around) Publish(ctx context.Context, list []guestapi.Forward) []guestapi.Publication {
	return a.ports.Set(ctx, list)
}

// Report implements machine.Around.
func (a *around) Report(st *api.Status) {
	a.mu.Lock()
	st.Shared = slices.Clone(a.shared)
	a.mu.Unlock()
	st.Published = nil
	for _, p := range a.ports.List() {
		st.Published = append(st.Published, api.Published{
			Protocol: p.Protocol, Address: p.Address.Addr().String(), Port: p.Address.Port(), To: p.To, Error: p.Error,
		})
	}
}
