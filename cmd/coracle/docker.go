package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/paths"
)

func newDocker(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "docker [--machine NAME] [DOCKER ARGUMENTS...]",
		Short: "Run the docker CLI against a machine",
		Long: `Docker runs the docker CLI that comes with Coracle, with compose and buildx, against a machine, whichever docker context
is selected. But for a leading --machine all arguments are the docker CLI's own, and so are its configuration (~/.docker)
and its exit status.`,
		Example: `  coracle docker ps
  coracle docker run --rm -it alpine
  coracle docker compose up -d
  coracle docker --machine work build -t app .`,
		DisableFlagParsing:    true,
		DisableFlagsInUseLine: true,
		RunE:                  run(a.docker),
	}
}

func (a *app) docker(ctx context.Context, args []string) error {
	name, args, err := leadingMachine(args)
	if err != nil {
		return err
	}
	m, err := a.machine(name)
	if err != nil {
		return err
	}
	prog, err := a.findDocker()
	if err != nil {
		return err
	}
	if needsEngine(args) && !answers(ctx, m) {
		_, err := api.New(m).Status(ctx)
		if api.CodeOf(err) == api.CodeNotFound && len(name) > 0 {
			return err
		}
		a.note(fmt.Sprintf("machine %q is not running: `coracle start %s` starts it", m.Name, m.Name))
	}
	return execute(prog, append([]string{"docker"}, args...), dockerEnv(os.Environ(), m))
}

// leadingMachine takes a --machine in front off args.
func leadingMachine(args []string) (name, rest []string, err error) {
	if len(args) == 0 {
		return nil, args, nil
	}
	if v, ok := strings.CutPrefix(args[0], "--machine="); ok {
		return []string{v}, args[1:], nil
	}
	if args[0] != "--machine" {
		return nil, args, nil
	}
	if len(args) < 2 {
		return nil, nil, usageError{err: errors.New("flag needs an argument: --machine"), hint: "see `coracle help docker`"}
	}
	return args[1:2], args[2:], nil
}

// needsEngine is false where the docker CLI surely asks no engine anything.
func needsEngine(args []string) bool {
	if len(args) == 0 || len(args) == 2 && args[1] == "version" { // a plugin's own
		return false
	}
	return !slices.ContainsFunc(args, func(arg string) bool { return arg == "--help" || arg == "-h" }) &&
		!slices.Contains([]string{"help", "--version", "-v", "completion", "context"}, args[0])
}

// answers is true where something listens on the machine's Docker socket.
func answers(ctx context.Context, m paths.Machine) bool {
	conn, err := dialDocker(ctx, m.DockerSocket())
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

func dialDocker(ctx context.Context, socket string) (net.Conn, error) {
	d := net.Dialer{Timeout: 2 * time.Second}
	return d.DialContext(ctx, "unix", socket)
}

// findDocker is the docker CLI that comes along, else the one on PATH.
func (a *app) findDocker() (string, error) {
	name := "docker"
	if a.goos == "windows" {
		name += ".exe"
	}
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		dir := filepath.Dir(exe)
		for _, p := range []string{filepath.Join(dir, "..", "libexec", "coracle", name), filepath.Join(dir, name)} {
			if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
				return p, nil
			}
		}
	}
	if p, err := exec.LookPath(name); err == nil {
		return filepath.Abs(p)
	}
	return "", &api.Error{Code: api.CodeNotFound, Message: "the docker CLI is neither beside coracle nor on PATH", Hint: "install Coracle again, or in its source tree run `make clients`"}
}

// dockerEnv is env with the one engine that is meant, and nothing that leads a docker CLI elsewhere.
func dockerEnv(env []string, m paths.Machine) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		key, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"}, strings.ToUpper(key))
	})
	return append(env, "DOCKER_HOST="+dockerHost(m))
}

// dockerHost is the machine's Docker socket as DOCKER_HOST spells it.
func dockerHost(m paths.Machine) string { return "unix://" + m.DockerSocket() }
