package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/coracle-engine/coracle/host/paths"
)

// Kinds of a Setting's value.
const (
	KindNumber = "number"
	KindSize   = "size" // bytes, with a unit
	KindText   = "text"
	KindSwitch = "switch" // true or false
	KindShares = "shares" // a list of PATH[:ro][:secrets]
	KindFiles  = "files"  // a list of paths
	KindList   = "list"   // of texts
	KindJSON   = "json"
)

// Setting is one setting under its key, as people read and write it.
type Setting struct {
	Key     string   `json:"key"`
	Kind    string   `json:"kind"`
	Doc     string   `json:"doc"`
	Values  []string `json:"values"`            // one, or a list's elements; none where nothing is set
	Default bool     `json:"default,omitempty"` // nobody chose it
	Live    bool     `json:"live,omitempty"`    // a running machine follows a change at once, where it can
}

// Configuration is a machine's settings, and how far a running machine follows them.
type Configuration struct {
	Machine string    `json:"machine"`
	Path    string    `json:"path"`           // of the settings file, which need not be there
	Text    string    `json:"text,omitempty"` // of that file
	Running bool      `json:"running"`
	Saved   Settings  `json:"saved"`    // those of the file: the next start's
	InForce Settings  `json:"inForce"`  // those of the running machine, else as Saved
	Keys    []Setting `json:"settings"` // Saved, key by key; also keys of the engine's that nobody set
	Changed []string  `json:"changed"`  // keys that this Change changed
	Waiting []string  `json:"waiting"`  // keys that a running machine follows from its next start only
	Notes   []string  `json:"notes,omitempty"`
}

// Verbs of a Change. The empty one changes nothing; with a Key, the answer has that one alone.
const (
	ChangeSet     = "set"     // Key to Values: to a list of them, or to one
	ChangeAdd     = "add"     // Values to the list Key; those that it has already stay
	ChangeRemove  = "remove"  // Values from the list Key; without Values, whatever is set under Key
	ChangeText    = "text"    // all, to those of Text, a settings file; Was is the text that it is made from
	ChangeReplace = "replace" // all, to Settings
)

// Change is one change of a machine's settings.
type Change struct {
	Verb     string    `json:"verb,omitempty"`
	Key      string    `json:"key,omitempty"`
	Values   []string  `json:"values,omitempty"`
	Text     string    `json:"text,omitempty"`
	Was      string    `json:"was,omitempty"`
	Settings *Settings `json:"settings,omitempty"`
}

// Settings tells the machine's settings. CodeNotRunning: no host process answers; Configure asks without one.
func (c *Client) Settings(ctx context.Context) (Configuration, error) {
	var out Configuration
	err := c.call(ctx, http.MethodGet, "/v1/settings", nil, &out)
	return out, err
}

// Apply makes s the machine's settings, keeps them, and has the machine follow them as far as it can while it runs. Where it
// fails nothing has changed. CodeNotRunning: no host process answers.
func (c *Client) Apply(ctx context.Context, s Settings) (Configuration, error) {
	var out Configuration
	err := c.call(ctx, http.MethodPut, "/v1/settings", s, &out)
	return out, err
}

// change is Configure for a machine whose host process answers.
func (c *Client) change(ctx context.Context, ch Change) (Configuration, error) {
	var out Configuration
	err := c.call(ctx, http.MethodPost, "/v1/settings", ch, &out)
	return out, err
}

// Configure makes one change to the settings of the machine of that name, whether it runs or not, and tells what they are
// then. A machine that runs follows at once where it can; where Configure fails nothing has changed. The default machine has
// settings, and gets a file, before its first start; of another one that does not exist the error is CodeNotFound.
func Configure(ctx context.Context, home, name string, ch Change) (Configuration, error) {
	m, err := paths.ForMachine(home, name)
	if err != nil {
		return Configuration{}, fromPaths(err)
	}
	c := New(m)
	var out Configuration
	for range 2 { // it may start or end between question and answer
		var st Status
		if st, err = c.live(ctx); err != nil {
			return out, err
		}
		again := CodeRunning
		if st.State == Starting || st.State == Running {
			out, err = c.change(ctx, ch)
			again = CodeNotRunning
		} else {
			out, err = configureStopped(ctx, home, name, ch)
		}
		if CodeOf(err) != again {
			break
		}
	}
	return out, err
}

// configureStopped has `coracled config` do it, which reads the Change from its standard input.
func configureStopped(ctx context.Context, home, name string, ch Change) (Configuration, error) {
	var out Configuration
	in, err := json.Marshal(ch)
	if err != nil {
		return out, err
	}
	answer, err := coracled(ctx, home, in, "config", "--", name)
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(answer, &out); err != nil {
		return out, fmt.Errorf("decode host process's settings: %w", err)
	}
	return out, nil
}
