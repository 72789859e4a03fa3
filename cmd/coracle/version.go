package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-engine/coracle/host/api"
)

// version is set by the release build, with the linker's -X.
var version = ""

// versions is what `version --json` prints.
type versions struct {
	Client  clientVersion   `json:"client"`
	Machine *machineVersion `json:"machine,omitempty"` // absent where it does not run
}

type clientVersion struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	System  string `json:"system"`
}

type machineVersion struct {
	Name        string    `json:"name"`
	Driver      string    `json:"driver"`
	Accelerator string    `json:"accelerator"`
	Image       api.Image `json:"image"`
	Docker      string    `json:"docker,omitempty"` // the Docker Engine's
}

func newVersion(a *app) *cobra.Command {
	var json bool
	cmd := &cobra.Command{
		Use:   "version [NAME]",
		Short: "Tell the versions of this program and of what a machine runs",
		Long:  "Version tells this program's version, and where the machine runs, those of its image, kernel and Docker Engine.",
		Example: `  coracle version
  coracle version --json`,
		Args:              between(0, 1),
		ValidArgsFunction: a.completeMachine,
		RunE: run(func(ctx context.Context, args []string) error {
			v := versions{Client: clientVersion{ourVersion(), runtime.Version(), a.goos + "/" + runtime.GOARCH}}
			_, _, st, err := a.status(ctx, args)
			if err != nil && len(args) > 0 {
				return err
			}
			if err == nil && st.State == api.Running {
				v.Machine = &machineVersion{Name: st.Name, Driver: st.Driver, Accelerator: st.Accelerator, Image: st.Image, Docker: engineVersion(ctx, st.DockerSocket)}
			}
			if json {
				return a.stdout.json(v)
			}
			rows := [][]string{{"coracle", v.Client.Version + ", " + v.Client.System + ", " + v.Client.Go}}
			if m := v.Machine; m != nil {
				rows = append(rows, []string{"machine", m.Name + ", " + driver(st)},
					[]string{"image", image(m.Image)}, []string{"docker", oneLine(m.Docker)})
			}
			a.stdout.table(rows)
			return nil
		}),
	}
	cmd.Flags().BoolVar(&json, "json", false, "print the versions as JSON")
	return cmd
}

func ourVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "development"
}

// engineVersion asks the Docker Engine for its version, and is empty where that does not answer soon.
func engineVersion(ctx context.Context, socket string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dialDocker(ctx, socket) },
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://docker/version", nil)
	if err != nil {
		return ""
	}
	resp, err := client.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var v struct{ Version string }
	if json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&v) != nil {
		return ""
	}
	return v.Version
}
