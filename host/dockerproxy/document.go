package dockerproxy

import (
	"bytes"
	"encoding/json"
	"strings"
)

// member is a key of a JSON object with its value's text.
type member struct {
	key   string
	value json.RawMessage
}

// object is a JSON object in its order. Values that nobody looks at keep their text: fields that we do not know pass as they
// are, and numbers keep their digits.
type object []member

// checkDocument refuses what is not one JSON value, and keys that occur twice in an object: of two such keys one parser may
// take the first, and another one the last.
func checkDocument(body []byte) error {
	if !json.Valid(body) {
		return badRequest("invalid JSON in the request's body")
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	type level struct {
		keys map[string]bool // nil: an array
		key  bool            // a key is next
	}
	var open []level
	for {
		token, err := dec.Token()
		if err != nil {
			return nil // the end: the text is valid
		}
		top := len(open) - 1
		if name, ok := token.(string); ok && top >= 0 && open[top].key {
			if open[top].keys[name] {
				return badRequest("invalid JSON in the request's body: key %q occurs twice in an object", name)
			}
			open[top].keys[name], open[top].key = true, false
			continue
		}
		switch token {
		case json.Delim('{'):
			open = append(open, level{map[string]bool{}, true})
			continue
		case json.Delim('['):
			open = append(open, level{})
			continue
		case json.Delim('}'), json.Delim(']'):
			open = open[:top]
		}
		if top = len(open) - 1; top >= 0 {
			open[top].key = open[top].keys != nil // a value ended
		}
	}
}

// edit has f change the object that raw is; what is no object is left for the engine to judge.
func edit(raw *json.RawMessage, f func(object) error) error {
	if raw == nil {
		return nil
	}
	o, ok := parseObject(*raw)
	if !ok {
		return nil
	}
	if err := f(o); err != nil {
		return err
	}
	*raw = o.text()
	return nil
}

// each has f change the elements of the array that raw is.
func each(raw *json.RawMessage, f func(*json.RawMessage) error) error {
	var list []json.RawMessage
	if raw == nil || json.Unmarshal(*raw, &list) != nil || list == nil {
		return nil
	}
	for i := range list {
		if err := f(&list[i]); err != nil {
			return err
		}
	}
	*raw = encode(list)
	return nil
}

func parseObject(raw json.RawMessage) (object, bool) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if first, err := dec.Token(); err != nil || first != json.Delim('{') {
		return nil, false
	}
	o := object{}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, false
		}
		m := member{key: key.(string)} // valid JSON has no other key
		if dec.Decode(&m.value) != nil {
			return nil, false
		}
		o = append(o, m)
	}
	return o, true
}

// field is the value that the engine takes for name, whose parser ignores case; nil where there is none. Two spellings of one
// name are refused: the engine would take both.
func (o object) field(name string) (*json.RawMessage, error) {
	var found *json.RawMessage
	for i := range o {
		if !strings.EqualFold(o[i].key, name) {
			continue
		}
		if found != nil {
			return nil, badRequest("invalid JSON in the request's body: field %s occurs twice in an object", name)
		}
		found = &o[i].value
	}
	return found, nil
}

// key is the value of exactly name, as in a map.
func (o object) key(name string) *json.RawMessage {
	for i := range o {
		if o[i].key == name {
			return &o[i].value
		}
	}
	return nil
}

func (o object) text() json.RawMessage {
	out := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(append(append(out, encode(m.key)...), ':'), m.value...)
	}
	return append(out, '}')
}

// text is the string that raw is; false where it is none.
func text(raw *json.RawMessage) (string, bool) {
	var s *string
	if raw == nil || json.Unmarshal(*raw, &s) != nil || s == nil {
		return "", false
	}
	return *s, true
}

// encode writes strings and lists of JSON, which cannot fail.
func encode(v any) json.RawMessage {
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}
