package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/coracle-engine/coracle/host/api"
)

// counts is from when a changed setting counts in a machine that runs.
type counts int

const (
	atStart    counts = iota // the next one
	ifPossible               // at once, unless containers would be lost: then from the next start
	atOnce
)

// row is one setting.
type row struct {
	key, doc string
	counts   counts
	// at is where s has it: a *int, *int64 (a size), *string, *bool, *[]string (of paths), *[]api.Share, *json.RawMessage (all
	// of the engine's keys) or an engineField (one of them). The type says how it is read, written and compared.
	at func(s *api.Settings) any
}

// table has all settings but the engine's keys, in the order in which they are shown.
var table = []row{
	{"cpus", "virtual CPUs", atStart, func(s *api.Settings) any { return &s.CPUs }},
	{"memory", "memory of the machine", atStart, func(s *api.Settings) any { return &s.Memory }},
	{"disk", "size of the disk with images, containers and volumes; it can grow, not shrink", atStart, func(s *api.Settings) any { return &s.Disk }},
	{"arch", "architecture of the guest, amd64 or arm64; empty: this computer's", atStart, func(s *api.Settings) any { return &s.Arch }},
	{"shares", "directories of this computer that containers can mount: PATH[:ro][:secrets]", atOnce, func(s *api.Settings) any { return &s.Shares }},
	{"ports.address", "where published ports are open when -p names no address", atOnce, func(s *api.Settings) any { return &s.Ports.Address }},
	{"ports.client-address", "containers see the address of the client of a published port", atOnce, func(s *api.Settings) any { return &s.Ports.ClientAddress }},
	{"network.loopback", "host.docker.internal reaches what listens on 127.0.0.1 of this computer", atOnce, func(s *api.Settings) any { return &s.Network.Loopback }},
	{"network.http-proxy", "proxy for http; empty: as the environment of `coracle start` says", ifPossible, func(s *api.Settings) any { return &s.Network.HTTPProxy }},
	{"network.https-proxy", "proxy for https; empty: as the environment says", ifPossible, func(s *api.Settings) any { return &s.Network.HTTPSProxy }},
	{"network.no-proxy", "hosts that are reached without a proxy, * for all; empty: as the environment says", ifPossible, func(s *api.Settings) any { return &s.Network.NoProxy }},
	{"network.certificates", "files with CA certificates (PEM) to trust beside this computer's own", ifPossible, func(s *api.Settings) any { return &s.Network.Certificates }},
	{"ssh", "containers can mount your ssh agent's socket, /run/host-services/ssh-auth.sock", atOnce, func(s *api.Settings) any { return &s.SSH }},
}

// aliases are other words for keys.
var aliases = map[string]string{"share": "shares", "network.certificate": "network.certificates"}

// engine is the prefix of the engine's keys, and the key of all of them together.
const engine = "engine"

// rows is the table with the engine's keys, those first that it knows, then what else s has.
func rows(s ...api.Settings) []row {
	all := slices.Clone(table)
	names := slices.Collect(engineNames(s...))
	for _, name := range names {
		all = append(all, engineRow(name))
	}
	return all
}

// find is the row of a key.
func find(key string, s api.Settings) (row, error) {
	if long, ok := aliases[key]; ok {
		key = long
	}
	for _, r := range table {
		if r.key == key {
			return r, nil
		}
	}
	if key == engine {
		return row{engine, "all keys of dockerd's daemon.json, as one JSON object", ifPossible, func(s *api.Settings) any { return &s.Engine }}, nil
	}
	if name, ok := strings.CutPrefix(key, engine+"."); ok && name != "" {
		return engineRow(name), nil
	}
	hint := "run `coracle config` to see all settings"
	var near []string
	for _, r := range rows(s) {
		if key != "" && (strings.HasSuffix(r.key, "."+key) || strings.HasPrefix(r.key, key)) && len(near) < 5 {
			near = append(near, r.key)
		}
	}
	if len(near) > 0 {
		hint = "did you mean " + strings.Join(near, ", ") + "?"
	}
	return row{}, bad(hint, "there is no setting %q", key)
}

// kind is the kind of the setting's values in s.
func (r row) kind(s api.Settings) string {
	switch v := r.at(&s).(type) {
	case *int:
		return api.KindNumber
	case *int64:
		return api.KindSize
	case *bool:
		return api.KindSwitch
	case *[]string:
		return api.KindFiles
	case *[]api.Share:
		return api.KindShares
	case *json.RawMessage:
		return api.KindJSON
	case engineField:
		return v.kind
	}
	return api.KindText
}

// get is the setting's value in s, an element for each of a list's; none where nothing is set.
func (r row) get(s api.Settings) []string {
	var text string
	switch v := r.at(&s).(type) {
	case *int:
		text = strconv.Itoa(*v)
	case *int64:
		text = FormatSize(*v)
	case *string:
		text = *v
	case *bool:
		text = strconv.FormatBool(*v)
	case *[]string:
		return slices.Clone(*v)
	case *[]api.Share:
		var all []string
		for _, sh := range *v {
			all = append(all, sh.String())
		}
		return all
	case *json.RawMessage:
		text = string(*v)
	case engineField:
		return v.get()
	}
	if text == "" {
		return nil
	}
	return []string{text}
}

// set makes values the setting's value in s. What is wrong with them as such is an error here, what is wrong with them on
// this host is Check's.
func (r row) set(s *api.Settings, values []string) error {
	switch v := r.at(s).(type) {
	case *[]string:
		*v = unempty(values)
		return nil
	case *[]api.Share:
		var all []api.Share
		for _, text := range unempty(values) {
			sh, err := api.ParseShare(text)
			if err != nil {
				return bad("give an absolute path", "%v", err)
			}
			all = append(all, sh)
		}
		*v = all
		return nil
	case engineField:
		return v.set(values)
	}
	if len(values) != 1 {
		return bad("give one", "%s takes one value, not %d", r.key, len(values))
	}
	return r.setOne(s, strings.TrimSpace(values[0]))
}

func (r row) setOne(s *api.Settings, text string) (err error) {
	switch v := r.at(s).(type) {
	case *int:
		if *v, err = strconv.Atoi(text); err != nil {
			return bad("give a number", "%s: %q is no number", r.key, text)
		}
	case *int64:
		if *v, err = ParseSize(text); err != nil {
			return bad("write it as 4GiB or 512MiB", "%s: %v", r.key, err)
		}
	case *string:
		*v = text
	case *bool:
		if *v, err = parseSwitch(text); err != nil {
			return bad("give true or false", "%s: %v", r.key, err)
		}
	case *json.RawMessage:
		raw, err := normal(text)
		if err != nil || raw[0] != '{' {
			return bad(`write it as '{"debug": true}'`, "%s: not a JSON object", r.key)
		}
		*v = raw
	}
	return nil
}

func unempty(values []string) []string {
	return slices.DeleteFunc(slices.Clone(values), func(v string) bool { return v == "" })
}

func parseSwitch(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "true", "on", "yes":
		return true, nil
	case "false", "off", "no":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither true nor false", text)
}

// list is whether the setting has elements in s.
func (r row) list(s api.Settings) bool {
	return slices.Contains([]string{api.KindShares, api.KindFiles, api.KindList}, r.kind(s))
}

// add puts values into a list. A share that is there already gets what the value says.
func (r row) add(s *api.Settings, values []string) error {
	if !r.list(*s) {
		return bad("run `coracle config set "+r.key+" VALUE`", "%s has one value, and is no list to add to", r.key)
	}
	all, same := r.get(*s), r.sameElement(*s)
	for _, v := range unempty(values) {
		i := slices.IndexFunc(all, func(have string) bool { return same(have, v) })
		if i < 0 {
			all = append(all, v)
		} else {
			all[i] = v
		}
	}
	return r.set(s, all)
}

// everything, as a value to remove, is all of a list.
const everything = "all"

// remove takes values out of a list, or puts back what a setting is in def.
func (r row) remove(s *api.Settings, def api.Settings, values []string) error {
	if len(values) == 0 || !r.list(*s) && slices.Equal(values, r.get(*s)) {
		if r.list(*s) && !strings.HasPrefix(r.key, engine+".") {
			return bad(fmt.Sprintf("run `coracle config remove %s VALUE`, or %q for every one", r.key, everything), "%s is a list: say what to remove", r.key)
		}
		r.take(s, def)
		return nil
	}
	if !r.list(*s) {
		return bad("run `coracle config remove "+r.key+"` to have its default again", "%s is not %q", r.key, strings.Join(values, " "))
	}
	if len(values) == 1 && values[0] == everything {
		return r.set(s, nil)
	}
	all, same := r.get(*s), r.sameElement(*s)
	for _, v := range values {
		i := slices.IndexFunc(all, func(have string) bool { return same(have, v) })
		if i < 0 {
			hint := "it has no elements"
			if len(all) > 0 {
				hint = "it has " + strings.Join(all, ", ")
			}
			return bad(hint, "%s has no %s", r.key, v)
		}
		all = slices.Delete(all, i, i+1)
	}
	return r.set(s, all)
}

// sameElement tells whether the list has a thing that a person names so; shares are the same where their path is.
func (r row) sameElement(s api.Settings) func(have, named string) bool {
	if r.kind(s) != api.KindShares {
		return func(have, named string) bool { return have == named }
	}
	return func(have, named string) bool {
		x, _ := api.ParseShare(have)
		y, _ := api.ParseShare(named)
		return x.Path == y.Path || x.Path == named
	}
}

// take makes the setting in s what it is in from.
func (r row) take(s *api.Settings, from api.Settings) {
	switch v := r.at(s).(type) {
	case *int:
		*v = *r.at(&from).(*int)
	case *int64:
		*v = *r.at(&from).(*int64)
	case *string:
		*v = *r.at(&from).(*string)
	case *bool:
		*v = *r.at(&from).(*bool)
	case *[]string:
		*v = *r.at(&from).(*[]string)
	case *[]api.Share:
		*v = *r.at(&from).(*[]api.Share)
	case *json.RawMessage:
		*v = *r.at(&from).(*json.RawMessage)
	case engineField:
		v.put(r.at(&from).(engineField).raw())
	}
}

// equal is whether a and b have the same setting.
func (r row) equal(a, b api.Settings) bool {
	if e, ok := r.at(&a).(engineField); ok {
		return bytes.Equal(e.normal(), r.at(&b).(engineField).normal())
	}
	return slices.Equal(r.get(a), r.get(b))
}

// normal is JSON text in the form in which it also comes back from YAML: compact, keys in order, whole numbers as they are and
// others as float64.
func normal(text string) (json.RawMessage, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if dec.More() {
		return nil, errors.New("more than one JSON value")
	}
	v, err := plainNumbers(v)
	if err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

func plainNumbers(v any) (out any, err error) {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n, nil
		}
		if n, err := strconv.ParseUint(v.String(), 10, 64); err == nil {
			return n, nil
		}
		return v.Float64()
	case []any:
		for i := range v {
			if v[i], err = plainNumbers(v[i]); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for k := range v {
			if v[k], err = plainNumbers(v[k]); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}
