package config

import (
	"bytes"
	"context"
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
	// Apply has the machine follow s, which has what the machine has anyway for settings that count at a start. Where it fails,
	// the machine follows what it did before; an error of class api.CodeRestart says that a start would do it.
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
		var why error
		if inForce, why, err = f.keep(ctx, live, text, inForce, saved); err != nil {
			return out, err
		}
		if why != nil {
			out.Notes = append(out.Notes, why.Error())
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

// keep writes text, where it is another, after the machine has followed saved as far as it can. It returns what is in force
// then, and why that is not all that was tried.
func (f *File) keep(ctx context.Context, live Live, text []byte, inForce, saved api.Settings) (now api.Settings, why, err error) {
	var st staged
	old, err := os.ReadFile(f.Path)
	write := err != nil || !bytes.Equal(old, text)
	if write {
		if st, err = stage(f.Path, text); err != nil {
			return inForce, nil, err
		}
	}
	if live != nil {
		if now, why, err = follow(ctx, live, saved, inForce); err != nil {
			st.drop()
			return inForce, nil, err
		}
	}
	if write {
		err = st.commit()
	}
	return now, why, err
}

// follow has the machine follow saved: first with all that may be possible, then with what is always. It returns what the
// machine follows then, and why not the first.
func follow(ctx context.Context, live Live, saved, inForce api.Settings) (now api.Settings, why, err error) {
	for _, least := range []counts{ifPossible, atOnce} {
		now = saved
		for _, r := range rows(saved, inForce) {
			if r.counts < least {
				r.take(&now, inForce)
			}
		}
		if same(now, inForce) {
			return inForce, why, nil
		}
		if err = live.Apply(ctx, now); api.CodeOf(err) != api.CodeRestart {
			return now, why, err
		}
		why = err
	}
	return inForce, nil, err
}

func same(a, b api.Settings) bool {
	return !slices.ContainsFunc(rows(a, b), func(r row) bool { return !r.equal(a, b) })
}

func (r row) setting(s, def api.Settings) api.Setting {
	return api.Setting{
		Key: r.key, Kind: r.kind(s), Doc: r.doc, Live: r.counts > atStart,
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
		if !r.equal(c.Saved, c.InForce) {
			c.Waiting = append(c.Waiting, r.key)
		}
	}
	for _, e := range Missing(c.Saved) {
		c.Notes = append(c.Notes, e.Message)
	}
	for _, name := range slices.Sorted(maps.Keys(keysOf(c.Saved.Engine))) {
		if !isEngineKey(name) && !c.Running { // one that runs has judged it
			c.Notes = append(c.Notes, "engine."+name+" is no key that Coracle knows: the Docker Engine will judge it")
		}
	}
}
