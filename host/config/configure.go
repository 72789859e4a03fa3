package config

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/coracle-engine/coracle/host/api"
)

// File is the settings file of one machine, and its only writer while it is used. Its Configure may be called from several
// goroutines.
type File struct {
	Machine string
	Path    string // of the file
	Disk    string // of the machine's data disk, which need not be there
	Host    Host

	mu sync.Mutex
}

// Live is a machine that runs, or is on its way; host/machine's Machine is one.
type Live interface {
	Status() api.Status
	// Apply has the machine follow s. Where it fails, the machine follows what it did before. What s has for settings that are
	// not live is what the machine has anyway.
	Apply(ctx context.Context, s api.Settings) error
}

// Configure makes one change and tells what the settings are then. live is nil for a machine that does not run; who calls
// holds its lock then, if ch changes anything. Where Configure fails, file and machine are as they were.
func (f *File) Configure(ctx context.Context, live Live, ch api.Change) (api.Configuration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := api.Configuration{Machine: f.Machine, Path: f.Path}
	def := Default(f.Host)
	text, old, err := f.read(def)
	if err != nil && ch.Verb != api.ChangeText { // a new text mends a file that cannot be read
		return out, err
	}
	inForce := old
	if live != nil {
		st := live.Status()
		out.Running = st.State == api.Running
		if ch.Verb != "" && !out.Running {
			return out, &api.Error{Code: api.CodeRunning, Message: fmt.Sprintf("machine %q is %s", f.Machine, st.State), Hint: "try again when it has done so"}
		}
		if out.Running {
			inForce = st.Settings
		}
	}
	saved := old
	if ch.Verb != "" {
		if saved, text, err = f.edit(old, def, text, ch); err != nil {
			return out, err
		}
		follow := following(saved, inForce)
		if err := f.keep(ctx, live, text, inForce, follow); err != nil {
			return out, err
		}
		if out.Running {
			inForce = follow
		}
	}
	if !out.Running {
		inForce = saved
	}
	out.Text, out.Saved, out.InForce = string(text), saved, inForce
	describe(&out, old, def)
	if ch.Verb == "" && ch.Key != "" {
		r, err := find(ch.Key, saved)
		if err != nil {
			return out, err
		}
		out.Keys = []api.Setting{r.setting(saved, def)}
	}
	return out, nil
}

// read is the file's text and what it says. A file that is not there says def.
func (f *File) read(def api.Settings) ([]byte, api.Settings, error) {
	text, err := os.ReadFile(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		text, err = render(def, nil)
		return text, def, err
	}
	if err != nil {
		return nil, def, fmt.Errorf("read settings: %w", err)
	}
	s, err := f.parse(text, def)
	return text, s, err
}

func (f *File) parse(text []byte, def api.Settings) (api.Settings, error) {
	s, err := Parse(text, def)
	if err != nil {
		err = bad("correct it with `coracle config edit`, or remove the file to get the defaults", "%s: %v", f.Path, err)
	}
	return s, err
}

// edit is what ch makes of old, whose text is text, and the new text.
func (f *File) edit(old, def api.Settings, text []byte, ch api.Change) (api.Settings, []byte, error) {
	s, err := old, error(nil)
	switch ch.Verb {
	case api.ChangeText:
		if ch.Was != string(text) {
			return old, nil, bad("begin again with `coracle config edit`", "the settings were changed by somebody else meanwhile")
		}
		if s, err = Parse([]byte(ch.Text), def); err != nil {
			err = bad("see `coracle config --help`", "%v", err)
		}
	case api.ChangeReplace:
		if ch.Settings == nil {
			return old, nil, bad("send them as JSON", "no settings in the request")
		}
		s = *ch.Settings
		if all, nerr := normal(string(s.Engine)); nerr == nil {
			s.Engine = all
		}
		if len(keysOf(s.Engine)) == 0 && checkEngine(s, f.Host) == nil {
			s.Engine = nil
		}
	default:
		err = one(&s, def, ch)
	}
	if err == nil {
		err = Check(s, f.Host)
	}
	if err == nil {
		err = newShares(old, s)
	}
	if err == nil {
		err = f.checkDisk(s)
	}
	switch {
	case err != nil:
		return old, nil, err
	case ch.Verb == api.ChangeText:
		return s, []byte(ch.Text), nil
	case same(s, old):
		return s, text, nil
	}
	text, err = render(s, text)
	return s, text, err
}

// one changes one setting of s.
func one(s *api.Settings, def api.Settings, ch api.Change) error {
	r, err := find(ch.Key, *s)
	if err != nil {
		return err
	}
	switch ch.Verb {
	case api.ChangeSet:
		return r.set(s, ch.Values)
	case api.ChangeAdd:
		return r.add(s, ch.Values)
	case api.ChangeRemove:
		return r.remove(s, def, ch.Values)
	}
	return bad("change them with set, add or remove", "settings cannot be changed by %q", ch.Verb)
}

// checkDisk wants the data disk not to shrink.
func (f *File) checkDisk(s api.Settings) error {
	st, err := os.Stat(f.Disk)
	if err != nil || st.Size() <= s.Disk {
		return nil
	}
	return bad("give at least "+FormatSize(st.Size()), "the disk has %s and cannot shrink to %s", FormatSize(st.Size()), FormatSize(s.Disk))
}

// keep writes text, where it is another, after the machine has followed.
func (f *File) keep(ctx context.Context, live Live, text []byte, inForce, follow api.Settings) error {
	var st staged
	old, err := os.ReadFile(f.Path)
	write := err != nil || !bytes.Equal(old, text)
	if write {
		if st, err = stage(f.Path, text); err != nil {
			return err
		}
	}
	if live != nil && !same(follow, inForce) {
		if err := live.Apply(ctx, follow); err != nil {
			st.drop()
			return err
		}
	}
	if write {
		return st.commit()
	}
	return nil
}

// following is what a machine in which inForce counts can follow of saved while it runs.
func following(saved, inForce api.Settings) api.Settings {
	now := saved
	for _, r := range rows(saved, inForce) {
		f, ofEngine := r.at(&now).(engineField)
		switch {
		case !r.live:
			r.take(&now, inForce)
		case !ofEngine || f.raw() != nil || r.equal(saved, inForce):
		case f.zero != "": // dockerd leaves what its file does not mention
			f.put(json.RawMessage(f.zero))
		default:
			r.take(&now, inForce)
		}
	}
	return now
}

func same(a, b api.Settings) bool {
	return !slices.ContainsFunc(rows(a, b), func(r row) bool { return !r.equal(a, b) })
}

func (r row) setting(s, def api.Settings) api.Setting {
	return api.Setting{
		Key: r.key, Kind: r.kind(s), Doc: r.doc, Live: r.live,
		Values: append([]string{}, r.get(s)...), Default: slices.Equal(r.get(s), r.get(def)),
	}
}

// describe fills in what follows from the settings in c, which were old and would be def.
func describe(c *api.Configuration, old, def api.Settings) {
	c.Keys, c.Changed, c.Waiting = []api.Setting{}, []string{}, []string{}
	for _, r := range rows(c.Saved, c.InForce, old) {
		one := r.setting(c.Saved, def)
		if name, ofEngine := strings.CutPrefix(r.key, engine+"."); !ofEngine || len(one.Values) > 0 || isEngineKey(name) {
			c.Keys = append(c.Keys, one)
		}
		if !r.equal(c.Saved, old) {
			c.Changed = append(c.Changed, r.key)
		}
		if r.waits(c.Saved, c.InForce) {
			c.Waiting = append(c.Waiting, r.key)
		}
	}
	for _, e := range Missing(c.Saved) {
		c.Notes = append(c.Notes, e.Message)
	}
	for _, name := range slices.Sorted(maps.Keys(keysOf(c.Saved.Engine))) {
		if !isEngineKey(name) {
			c.Notes = append(c.Notes, "engine."+name+" is no key that Coracle knows: the Docker Engine will judge it, and does not start with one that it does not know")
		}
	}
}
