// Command build makes the Docker clients that come with Coracle: the docker CLI, buildx and compose, from the Go modules
// that packaging/clients pins, for one system and architecture. Its neighbours are `coracle docker`, which runs what it
// made, and the packages that carry it.
//
//	go run ./packaging/build -out build/libexec/coracle [-os windows] [-arch arm64]
//
// It writes OUT/docker, OUT/cli-plugins/docker-{buildx,compose} and OUT/licenses. The programs are upstream's but for one
// file, bundled.go.txt, that the docker CLI's plugin search gets: the docker CLI looks for plugins in the user's
// configuration and in fixed places of the system, and with that file also beside itself, so that ours work from wherever
// they are, with no change to anybody's configuration.
package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
)

//go:embed bundled.go.txt
var bundled []byte

const dockerCLI = "github.com/docker/cli"

// module is what `go list -m -json` and `go mod download -json` tell of one.
type module struct {
	Path, Version, Time, Dir, Sum string
}

// version is the module's as its own releases print it.
func (m module) version() string { return strings.TrimSuffix(m.Version, "+incompatible") }

// client is one program to build.
type client struct {
	module, pkg string
	out         string // below the output directory, without .exe
	tags        string
	strings     func(m module) map[string]string // what upstream's release build sets by the linker's -X
}

var clients = []client{
	{dockerCLI, dockerCLI + "/cmd/docker", "docker", "grpcnotrace", func(m module) map[string]string {
		return map[string]string{
			dockerCLI + "/cli/version.Version":   strings.TrimPrefix(m.version(), "v"),
			dockerCLI + "/cli/version.GitCommit": m.Sum, // a module has no commit; its checksum names the same source
			dockerCLI + "/cli/version.BuildTime": m.Time,
		}
	}},
	{"github.com/docker/buildx", "github.com/docker/buildx/cmd/buildx", "cli-plugins/docker-buildx", "", func(m module) map[string]string {
		return map[string]string{m.Path + "/version.Version": m.version()}
	}},
	{"github.com/docker/compose/v5", "github.com/docker/compose/v5/cmd", "cli-plugins/docker-compose", "", func(m module) map[string]string {
		return map[string]string{m.Path + "/internal.Version": m.version()}
	}},
}

func main() {
	out := flag.String("out", "build/libexec/coracle", "`directory` to write to")
	goos := flag.String("os", runtime.GOOS, "operating system to build for")
	goarch := flag.String("arch", runtime.GOARCH, "architecture to build for")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *out, *goos, *goarch); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, goos, goarch string) error {
	out, err := filepath.Abs(out)
	if err != nil {
		return err
	}
	gomod, err := goTool(ctx, ".", nil, "env", "GOMOD")
	if err != nil {
		return err
	}
	root := filepath.Dir(strings.TrimSpace(string(gomod)))
	b := builder{pins: filepath.Join(root, "packaging", "clients"), src: filepath.Join(root, "build", "src", "docker-cli"), out: out, goos: goos, goarch: goarch}
	mods, err := b.modules(ctx)
	if err != nil {
		return fmt.Errorf("find pinned modules: %w", err)
	}
	if err := b.prepare(mods[dockerCLI]); err != nil {
		return fmt.Errorf("prepare docker CLI's source: %w", err)
	}
	for _, c := range clients {
		fmt.Fprintf(os.Stderr, "building %s %s for %s/%s\n", c.pkg, mods[c.module].version(), goos, goarch)
		if err := b.build(ctx, c, mods[c.module]); err != nil {
			return err
		}
	}
	return nil
}

type builder struct {
	pins         string // the module that pins the clients
	src          string // the docker CLI's source with our file in it
	out          string
	goos, goarch string
}

// modules are the clients' modules, downloaded, by path.
func (b builder) modules(ctx context.Context) (map[string]module, error) {
	mods := map[string]module{}
	for _, verb := range [][]string{{"mod", "download"}, {"list", "-m"}} { // Sum and Dir come from the first, Time from the second
		args := append(verb, "-json")
		for _, c := range clients {
			args = append(args, c.module)
		}
		data, err := goTool(ctx, b.pins, nil, args...)
		if err != nil {
			return nil, err
		}
		for dec := json.NewDecoder(bytes.NewReader(data)); ; {
			var m module
			if err := dec.Decode(&m); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, err
			}
			m.Sum, m.Dir = max(m.Sum, mods[m.Path].Sum), max(m.Dir, mods[m.Path].Dir)
			mods[m.Path] = m
		}
	}
	return mods, nil
}

// prepare copies the docker CLI's source, adds our file, and writes a go.mod beside it that is the pins' but for the
// replacement. The replacement's path is relative to the pins, so that the programs don't tell where they were built.
func (b builder) prepare(cli module) error {
	if err := os.RemoveAll(b.src); err != nil {
		return err
	}
	if err := os.CopyFS(b.src, os.DirFS(cli.Dir)); err != nil {
		return err
	}
	rel, err := filepath.Rel(b.pins, b.src)
	if err != nil {
		return err
	}
	gomod, err := os.ReadFile(filepath.Join(b.pins, "go.mod"))
	if err != nil {
		return err
	}
	gosum, err := os.ReadFile(filepath.Join(b.pins, "go.sum"))
	if err != nil {
		return err
	}
	golang, err := languageVersion(filepath.Join(cli.Dir, "vendor.mod"))
	if err != nil {
		return err
	}
	gomod = fmt.Appendf(gomod, "\nreplace %s => %s\n", dockerCLI, filepath.ToSlash(rel))
	return errors.Join(
		os.WriteFile(filepath.Join(b.src, "go.mod"), []byte("module "+dockerCLI+"\n\n"+golang+"\n"), 0o666),
		os.WriteFile(filepath.Join(b.src, "cli-plugins", "manager", "coracle_bundled.go"), bundled, 0o666),
		os.WriteFile(b.src+".mod", gomod, 0o666),
		os.WriteFile(b.src+".sum", gosum, 0o666),
	)
}

// languageVersion is the go line of a go.mod. The docker CLI has its own under another name, so that the go command takes
// its source for Go 1.16's, which it no longer is.
func languageVersion(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "go ") {
			return line, nil
		}
	}
	return "", fmt.Errorf("%s names no version of Go", path)
}

func (b builder) build(ctx context.Context, c client, m module) error {
	out := filepath.Join(b.out, filepath.FromSlash(c.out))
	if b.goos == "windows" {
		out += ".exe"
	}
	flags := "-s -w"
	for name, value := range c.strings(m) {
		flags += fmt.Sprintf(" -X %s=%s", name, value)
	}
	env := []string{"CGO_ENABLED=0", "GOOS=" + b.goos, "GOARCH=" + b.goarch}
	_, err := goTool(ctx, b.pins, env, "build", "-modfile", b.src+".mod", "-trimpath", "-buildvcs=false",
		"-tags", c.tags, "-ldflags", flags, "-o", out, c.pkg)
	if err != nil {
		return err
	}
	licenses := filepath.Join(b.out, "licenses", filepath.Base(c.out))
	for _, name := range []string{"LICENSE", "NOTICE"} {
		text, err := os.ReadFile(filepath.Join(m.Dir, name))
		if errors.Is(err, os.ErrNotExist) && name == "NOTICE" {
			continue
		}
		if err := errors.Join(err, os.MkdirAll(licenses, 0o777)); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(licenses, name), text, 0o666); err != nil {
			return err
		}
	}
	return nil
}

// goTool runs the go command in dir, with env added to our own environment, and returns what it printed.
func goTool(ctx context.Context, dir string, env []string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w", strings.Join(args[:2], " "), err)
	}
	return out, nil
}
