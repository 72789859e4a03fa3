package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/coracle-engine/coracle/host/api"
)

// document is the file as it is written.
type document struct {
	Version int         `yaml:"version"`
	CPUs    int         `yaml:"cpus"`
	Memory  size        `yaml:"memory"`
	Disk    size        `yaml:"disk"`
	Arch    string      `yaml:"arch,omitempty"`
	Shares  []api.Share `yaml:"shares"`
	Ports   struct {
		Address       string `yaml:"address"`
		ClientAddress bool   `yaml:"client-address"`
	} `yaml:"ports"`
	Network struct {
		Loopback     bool     `yaml:"loopback"`
		HTTPProxy    string   `yaml:"http-proxy,omitempty"`
		HTTPSProxy   string   `yaml:"https-proxy,omitempty"`
		NoProxy      string   `yaml:"no-proxy,omitempty"`
		Certificates []string `yaml:"certificates,omitempty"`
	} `yaml:"network"`
	SSH    bool      `yaml:"ssh"`
	Engine yaml.Node `yaml:"engine,omitempty"`
}

const heading = `# The settings of a Coracle machine; what is not here is as it comes. Change them with ` + "`coracle config`" + `, which has a
# running machine follow at once where it can; what is written here by hand counts from the next start. The disk can grow, not
# shrink. Lists are "shares" (each with path, read-only and secrets) and "certificates" in "network"; what is below "engine"
# goes into dockerd's daemon.json.
`

// Load reads the settings in the file at path; what it leaves out is as in def. A file that is not there is def itself.
// Errors are of class api.CodeConfig and name file and line.
func Load(path string, def api.Settings) (api.Settings, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return def, nil
	}
	if err != nil {
		return def, fmt.Errorf("read settings: %w", err)
	}
	s, err := Parse(data, def)
	if err != nil {
		return def, &api.Error{Code: api.CodeConfig, Message: fmt.Sprintf("%s: %v", path, err),
			Hint: "correct it with `coracle config edit`, or remove the file to get the defaults"}
	}
	return s, nil
}

var unknownKey = regexp.MustCompile(`field (\S+) not found in type (?:struct \{.*?\}$|\S+)`)

// Parse decodes settings; what they leave out is as in def. A list that is there counts, also an empty one.
func Parse(data []byte, def api.Settings) (api.Settings, error) {
	doc, err := documentOf(def)
	if err != nil {
		return def, err
	}
	var head struct { // a later format may have keys that this one has not: say that it is later
		Version int            `yaml:"version"`
		Rest    map[string]any `yaml:",inline"`
	}
	if err := yaml.Unmarshal(data, &head); err == nil && head.Version > Version {
		return def, fmt.Errorf("settings have version %d, this program reads %d: a newer Coracle wrote them", head.Version, Version)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&doc); err != nil && !errors.Is(err, io.EOF) {
		return def, errors.New(plain(err))
	}
	if doc.Version != Version {
		return def, fmt.Errorf("settings have version %d: want %d", doc.Version, Version)
	}
	s, err := doc.settings()
	if err != nil {
		return def, err
	}
	return s, nil
}

func documentOf(s api.Settings) (document, error) {
	doc := document{Version: Version, CPUs: s.CPUs, Memory: size(s.Memory), Disk: size(s.Disk), Arch: s.Arch, Shares: s.Shares, SSH: s.SSH}
	doc.Ports.Address, doc.Ports.ClientAddress = s.Ports.Address, s.Ports.ClientAddress
	n := s.Network
	doc.Network.Loopback, doc.Network.HTTPProxy, doc.Network.HTTPSProxy = n.Loopback, n.HTTPProxy, n.HTTPSProxy
	doc.Network.NoProxy, doc.Network.Certificates = n.NoProxy, n.Certificates
	if len(s.Engine) == 0 {
		return doc, nil
	}
	var tree yaml.Node // JSON is YAML
	if err := yaml.Unmarshal(s.Engine, &tree); err != nil || len(tree.Content) != 1 {
		return doc, fmt.Errorf("write engine's keys: %w", err)
	}
	doc.Engine = *tree.Content[0]
	block(&doc.Engine)
	return doc, nil
}

// block gives n the style of a file that people read.
func block(n *yaml.Node) {
	if n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode && len(n.Content) > 0 {
		n.Style &^= yaml.FlowStyle
	}
	n.Style &^= yaml.DoubleQuotedStyle // where quotes are needed they stay
	for _, c := range n.Content {
		block(c)
	}
}

func (d document) settings() (api.Settings, error) {
	s := api.Settings{
		CPUs: d.CPUs, Memory: int64(d.Memory), Disk: int64(d.Disk), Arch: d.Arch, Shares: d.Shares, SSH: d.SSH,
		Ports: api.Ports{Address: d.Ports.Address, ClientAddress: d.Ports.ClientAddress},
		Network: api.Network{
			Loopback: d.Network.Loopback, HTTPProxy: d.Network.HTTPProxy, HTTPSProxy: d.Network.HTTPSProxy,
			NoProxy: d.Network.NoProxy, Certificates: d.Network.Certificates,
		},
	}
	if len(s.Shares) == 0 {
		s.Shares = nil
	}
	if len(s.Network.Certificates) == 0 {
		s.Network.Certificates = nil
	}
	if d.Engine.IsZero() || d.Engine.Tag == "!!null" {
		return s, nil
	}
	var keys map[string]any
	if err := d.Engine.Decode(&keys); err != nil {
		return s, errors.New(plain(err))
	}
	if len(keys) == 0 {
		return s, nil
	}
	raw, err := json.Marshal(keys)
	if err != nil {
		return s, fmt.Errorf("line %d: engine has what JSON cannot say: %w", d.Engine.Line, err)
	}
	s.Engine = raw
	return s, nil
}

// plain tells a decoder's error in one line and in a user's words.
func plain(err error) string {
	var several *yaml.TypeError
	msg := err.Error()
	if errors.As(err, &several) {
		lines := several.Errors
		for i := range lines {
			lines[i] = unknownKey.ReplaceAllString(lines[i], "unknown key $1")
		}
		msg = strings.Join(lines, "; ")
	}
	return strings.TrimPrefix(msg, "yaml: ")
}

// Save writes s to path, whole or not at all. What stands there keeps its comments and its order.
func Save(path string, s api.Settings) error {
	old, _ := os.ReadFile(path) // where it cannot be read it is written anew
	text, err := render(s, old)
	if err != nil {
		return err
	}
	staged, err := stage(path, text)
	if err != nil {
		return err
	}
	return staged.commit()
}

// render is s as the text of a file, old with the values of s where that can be done.
func render(s api.Settings, old []byte) ([]byte, error) {
	doc, err := documentOf(s)
	if err != nil {
		return nil, err
	}
	var fresh, tree yaml.Node
	if err := fresh.Encode(doc); err != nil {
		return nil, fmt.Errorf("write settings: %w", err)
	}
	if yaml.Unmarshal(old, &tree) == nil && len(tree.Content) == 1 && tree.Content[0].Kind == yaml.MappingNode {
		merge(tree.Content[0], &fresh)
		if text, err := encodeYAML(&tree); err == nil {
			if got, err := Parse(text, api.Settings{}); err == nil && same(got, s) {
				return text, nil
			}
		}
	}
	text, err := encodeYAML(&fresh)
	if err != nil {
		return nil, fmt.Errorf("write settings: %w", err)
	}
	return append([]byte(heading), text...), nil
}

func encodeYAML(n *yaml.Node) ([]byte, error) {
	var buf bytes.Buffer
	enc := yaml.NewEncoder(&buf)
	enc.SetIndent(2)
	if err := enc.Encode(n); err != nil {
		return nil, err
	}
	return buf.Bytes(), enc.Close()
}

// merge makes the mapping old say what fresh says, and leaves alone what says so already.
func merge(old, fresh *yaml.Node) {
	var kept []*yaml.Node
	for i := 0; i+1 < len(old.Content); i += 2 {
		key, have := old.Content[i], old.Content[i+1]
		want := value(fresh, key.Value)
		if want == nil {
			continue
		}
		if have.Kind == yaml.MappingNode && want.Kind == yaml.MappingNode {
			merge(have, want)
		} else if !alike(have, want) {
			want.LineComment, want.HeadComment, want.FootComment = have.LineComment, have.HeadComment, have.FootComment
			keepElements(have, want)
			have = want
		}
		kept = append(kept, key, have)
	}
	for i := 0; i+1 < len(fresh.Content); i += 2 {
		if value(old, fresh.Content[i].Value) == nil {
			kept = append(kept, fresh.Content[i], fresh.Content[i+1])
		}
	}
	old.Content = kept
}

// keepElements puts into the list want those elements of have that are the same, with their comments.
func keepElements(have, want *yaml.Node) {
	if have.Kind != yaml.SequenceNode || want.Kind != yaml.SequenceNode {
		return
	}
	for i, w := range want.Content {
		for _, h := range have.Content {
			if alike(h, w) {
				want.Content[i] = h
			}
		}
	}
}

func value(mapping *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return mapping.Content[i+1]
		}
	}
	return nil
}

// alike is whether two nodes say the same; aliases are not followed.
func alike(a, b *yaml.Node) bool {
	if a.Kind != b.Kind || a.Kind == yaml.AliasNode || a.Value != b.Value || a.ShortTag() != b.ShortTag() || len(a.Content) != len(b.Content) {
		return false
	}
	for i := range a.Content {
		if !alike(a.Content[i], b.Content[i]) {
			return false
		}
	}
	return true
}

// staged is a file written beside the place that it is for.
type staged struct{ tmp, path string }

// stage writes text, so that what could go wrong with it has gone wrong before anything depends on it.
func stage(path string, text []byte) (staged, error) {
	st := staged{tmp: path + "~", path: path}
	if err := os.WriteFile(st.tmp, text, 0o600); err != nil {
		st.drop()
		return st, fmt.Errorf("write settings: %w", err)
	}
	return st, nil
}

func (s staged) commit() error {
	if err := os.Rename(s.tmp, s.path); err != nil {
		s.drop()
		return fmt.Errorf("write settings: %w", err)
	}
	return nil
}

func (s staged) drop() { _ = os.Remove(s.tmp) }
