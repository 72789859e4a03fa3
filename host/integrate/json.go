package integrate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

const currentKey = "currentContext"

// errNotObject says that docker's config.json is not what it should be, and was left alone.
var errNotObject = errors.New("docker's config.json is not a JSON object: left as it is")

// member is one top-level key with its place in the text.
type member struct {
	key        string
	before     int // where the previous value, or the opening brace, ended
	start, end int // of the key and of the value
	value      json.RawMessage
	valueStart int
}

// members finds the top-level members of a JSON object and the place of its closing brace.
func members(data []byte) ([]member, int, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, 0, errNotObject
	}
	var all []member
	before := int(dec.InputOffset())
	for dec.More() { // it skips white space
		m := member{before: before}
		t, err := dec.Token()
		if err != nil {
			return nil, 0, fmt.Errorf("%w (%w)", errNotObject, err)
		}
		m.key, _ = t.(string)
		m.start = m.before + bytes.IndexByte(data[m.before:], '"')
		if err := dec.Decode(&m.value); err != nil {
			return nil, 0, fmt.Errorf("%w (%w)", errNotObject, err)
		}
		m.end = int(dec.InputOffset())
		m.valueStart = m.end - len(m.value)
		if !bytes.Equal(data[m.valueStart:m.end], m.value) {
			return nil, 0, errNotObject
		}
		all, before = append(all, m), m.end
	}
	if _, err := dec.Token(); err != nil {
		return nil, 0, fmt.Errorf("%w (%w)", errNotObject, err)
	}
	closing := int(dec.InputOffset()) - 1
	if _, err := dec.Token(); err != io.EOF {
		return nil, 0, errNotObject
	}
	return all, closing, nil
}

// currentContext is the context that a config.json selects; empty for docker's default.
func currentContext(data []byte) (string, error) {
	all, _, err := members(data)
	if err != nil {
		return "", err
	}
	name := ""
	for _, m := range all { // of several the last counts, as in docker
		if m.key == currentKey && json.Unmarshal(m.value, &name) != nil {
			return "", errNotObject
		}
	}
	return name, nil
}

// setCurrentContext changes nothing in data but that one key: other keys keep their bytes, order and white space. An empty
// name removes it.
func setCurrentContext(data []byte, name string) ([]byte, error) {
	all, closing, err := members(data)
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(name)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(all, func(m member) bool { return m.key == currentKey })
	switch {
	case i < 0 && name == "":
		return data, nil
	case i < 0:
		return insert(data, all, closing, value), nil
	case name == "":
		rest, err := remove(data, all, i)
		if err != nil {
			return nil, err
		}
		return setCurrentContext(rest, "") // it may be there twice
	}
	out := slices.Clone(data)
	for _, m := range slices.Backward(all) {
		if m.key == currentKey {
			out = slices.Replace(out, m.valueStart, m.end, value...)
		}
	}
	return out, nil
}

func insert(data []byte, all []member, closing int, value []byte) []byte {
	field := append([]byte(`"`+currentKey+`": `), value...)
	if len(all) == 0 {
		return slices.Replace(slices.Clone(data), bytes.IndexByte(data, '{')+1, closing, []byte("\n\t"+string(field)+"\n")...)
	}
	last := all[len(all)-1]
	space := bytes.Trim(data[last.before:last.start], ",")
	return slices.Insert(slices.Clone(data), last.end, slices.Concat([]byte(","), bytes.ReplaceAll(space, []byte(","), nil), field)...)
}

func remove(data []byte, all []member, i int) ([]byte, error) {
	from, to := all[i].before, all[i].end
	if i == 0 && len(all) > 1 { // the comma that goes with it comes after
		comma := bytes.IndexByte(data[to:], ',')
		if comma < 0 {
			return nil, errNotObject
		}
		to += comma + 1
	}
	return slices.Delete(slices.Clone(data), from, to), nil
}
