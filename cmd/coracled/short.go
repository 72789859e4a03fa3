package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"

	"github.com/coracle-engine/coracle/host/api"
	"github.com/coracle-engine/coracle/host/config"
	"github.com/coracle-engine/coracle/host/diagnose"
	"github.com/coracle-engine/coracle/host/image"
	"github.com/coracle-engine/coracle/host/paths"
	"github.com/coracle-engine/coracle/vm/drivers"
)

// cacheDir is where drivers remember what a probe found.
func cacheDir(home string) string { return filepath.Join(home, "cache") }

// remove deletes a machine that does not run, with all its data.
func remove(ctx context.Context, home, name string) error {
	place, err := paths.ForMachine(home, name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(place.Dir); errors.Is(err, os.ErrNotExist) {
		return api.Errorf(api.CodeNotFound, "there is no machine %q", name)
	}
	held, err := own(ctx, place)
	if err != nil {
		return err
	}
	defer held.Close()
	if err := dockerContext(place).Unset(); err != nil {
		return err
	}
	// The data goes first: what an interrupted removal leaves is still known as a machine, and can be removed again.
	if err := os.Remove(place.DataDisk()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove machine: %w", err)
	}
	if err := discard(place); err != nil {
		return fmt.Errorf("remove machine: %w", err)
	}
	return nil
}

// configure makes the change that in holds, as JSON, to the settings of a machine that does not run. The default machine can
// have settings before it is first started.
func configure(ctx context.Context, home, name string, in io.Reader) (api.Configuration, error) {
	var out api.Configuration
	var ch api.Change
	if err := json.NewDecoder(in).Decode(&ch); err != nil {
		return out, fmt.Errorf("read change of settings: %w", err)
	}
	place, err := paths.ForMachine(home, name)
	if err != nil {
		return out, err
	}
	if _, err := os.Stat(place.Dir); errors.Is(err, os.ErrNotExist) && name != paths.DefaultMachine {
		return out, api.Errorf(api.CodeNotFound, "there is no machine %q", name)
	}
	host, err := thisHost(home)
	if err != nil {
		return out, err
	}
	if ch.Verb != "" {
		held, err := own(ctx, place)
		if err != nil {
			return out, err
		}
		defer held.Close()
	}
	file := config.File{Machine: name, Path: place.Config(), Disk: place.DataDisk(), Host: host}
	out, err = file.Configure(ctx, nil, ch)
	if err != nil && ch.Verb != "" && isNew(place) {
		_ = discard(place) // there is nothing in it but what we just made
	}
	return out, err
}

// doctor looks for whatever could keep a machine from starting.
func doctor(ctx context.Context, home string) ([]api.Check, error) {
	host, err := thisHost(home)
	if err != nil {
		return nil, err
	}
	return diagnose.Checks(ctx, diagnose.Subject{
		Home:    home,
		Drivers: drivers.All(slog.New(slog.DiscardHandler), ""),
		Image: func() (string, error) {
			dir, err := findImage(runtime.GOARCH)
			if err != nil {
				return "", err
			}
			img, err := image.Look(dir)
			if err != nil {
				return "", err
			}
			return fmt.Sprintf("version %s, kernel %s, in %s", img.Version, img.Kernel, dir), nil
		},
		Space:  func() (free, needed int64, err error) { return image.Free(existing(home)) },
		Memory: host.Memory, Default: config.Default(host).Memory,
		Watches: diagnose.Watches(),
		Settings: func(name string) (api.Settings, error) {
			place, err := paths.ForMachine(home, name)
			if err != nil {
				return api.Settings{}, err
			}
			s, err := config.Load(place.Config(), config.Default(host))
			if err != nil {
				return s, err
			}
			return s, config.Check(s, host)
		},
	}), nil
}

// existing is dir, or the nearest directory above it that there is.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}
