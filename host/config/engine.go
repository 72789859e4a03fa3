package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/coracle-engine/coracle/host/api"
)

// engineKey is one key of dockerd's daemon.json (moby, daemon/config). The soft ones dockerd takes over when it is told to read
// its file again (moby, daemon/reload.go); for the others it is started anew, which containers outlive in most cases.
type engineKey struct {
	name, kind string
	soft       bool
	check      func(string) error // of the text, or of each in a list
	doc        string
}

var engineKeys = []engineKey{
	{name: "allow-direct-routing", kind: api.KindSwitch},
	{name: "authorization-plugins", kind: api.KindList},
	{name: "bip", kind: api.KindText, check: network, doc: "address and network of the bridge, such as 172.17.0.1/16"},
	{name: "bip6", kind: api.KindText, check: network},
	{name: "bridge", kind: api.KindText},
	{name: "bridge-accept-fwmark", kind: api.KindText},
	{name: "builder", kind: api.KindJSON, doc: "settings of BuildKit"},
	{name: "cdi-spec-dirs", kind: api.KindList},
	{name: "cgroup-parent", kind: api.KindText},
	{name: "containerd-namespace", kind: api.KindText},
	{name: "containerd-plugin-namespace", kind: api.KindText},
	{name: "cpu-rt-period", kind: api.KindNumber},
	{name: "cpu-rt-runtime", kind: api.KindNumber},
	{name: "debug", kind: api.KindSwitch, soft: true, doc: "dockerd logs more"},
	{name: "default-address-pools", kind: api.KindJSON, doc: `networks for containers, such as [{"base":"10.10.0.0/16","size":24}]`},
	{name: "default-cgroupns-mode", kind: api.KindText, soft: true},
	{name: "default-gateway", kind: api.KindText, check: address},
	{name: "default-gateway-v6", kind: api.KindText, check: address},
	{name: "default-init", kind: api.KindText},
	{name: "default-ipc-mode", kind: api.KindText, soft: true},
	{name: "default-network-opts", kind: api.KindJSON},
	{name: "default-runtime", kind: api.KindText, soft: true},
	{name: "default-shm-size", kind: api.KindText, soft: true, doc: "size of /dev/shm, such as 64M"},
	{name: "default-stop-timeout", kind: api.KindNumber, soft: true},
	{name: "default-ulimits", kind: api.KindJSON},
	{name: "dns", kind: api.KindList, check: address, doc: "name servers of containers"},
	{name: "dns-opts", kind: api.KindList},
	{name: "dns-search", kind: api.KindList, doc: "search domains of containers"},
	{name: "exec-opts", kind: api.KindList},
	{name: "experimental", kind: api.KindSwitch},
	{name: "features", kind: api.KindJSON},
	{name: "firewall-backend", kind: api.KindText},
	{name: "fixed-cidr", kind: api.KindText, check: network},
	{name: "fixed-cidr-v6", kind: api.KindText, check: network},
	{name: "host-gateway-ips", kind: api.KindList, check: address},
	{name: "icc", kind: api.KindSwitch},
	{name: "init", kind: api.KindSwitch, doc: "containers get an init that reaps their children"},
	{name: "insecure-registries", kind: api.KindList, soft: true, check: registry, doc: "registries without TLS or with a certificate nobody signed: HOST[:PORT] or a network"},
	{name: "ip", kind: api.KindText, check: address},
	{name: "ip-forward", kind: api.KindSwitch},
	{name: "ip-forward-no-drop", kind: api.KindSwitch},
	{name: "ip-masq", kind: api.KindSwitch},
	{name: "ip6tables", kind: api.KindSwitch},
	{name: "iptables", kind: api.KindSwitch},
	{name: "ipv6", kind: api.KindSwitch, doc: "the default bridge has IPv6"},
	{name: "labels", kind: api.KindList, soft: true},
	{name: "live-restore", kind: api.KindSwitch, soft: true, doc: "containers live on while dockerd restarts"},
	{name: "log-driver", kind: api.KindText, doc: "where containers log to, such as json-file or local"},
	{name: "log-format", kind: api.KindText},
	{name: "log-level", kind: api.KindText, doc: "of dockerd's own log: debug, info, warn, error, fatal"},
	{name: "log-opts", kind: api.KindJSON, doc: `options of the log driver, such as {"max-size":"10m"}`},
	{name: "max-concurrent-downloads", kind: api.KindNumber, soft: true},
	{name: "max-concurrent-uploads", kind: api.KindNumber, soft: true},
	{name: "max-download-attempts", kind: api.KindNumber, soft: true},
	{name: "metrics-addr", kind: api.KindText},
	{name: "min-api-version", kind: api.KindText},
	{name: "mtu", kind: api.KindNumber},
	{name: "network-control-plane-mtu", kind: api.KindNumber},
	{name: "network-diagnostic-port", kind: api.KindNumber, soft: true},
	{name: "no-new-privileges", kind: api.KindSwitch},
	{name: "node-generic-resources", kind: api.KindList},
	{name: "nri-opts", kind: api.KindJSON},
	{name: "proxies", kind: api.KindJSON},
	{name: "raw-logs", kind: api.KindSwitch},
	{name: "registry-mirrors", kind: api.KindList, soft: true, check: mirror, doc: "mirrors of Docker Hub: https://HOST"},
	{name: "resolv-conf", kind: api.KindText},
	{name: "runtimes", kind: api.KindJSON, soft: true},
	{name: "seccomp-profile", kind: api.KindText},
	{name: "selinux-enabled", kind: api.KindSwitch},
	{name: "shutdown-timeout", kind: api.KindNumber, soft: true},
	{name: "storage-driver", kind: api.KindText},
	{name: "storage-opts", kind: api.KindList},
	{name: "swarm-default-advertise-addr", kind: api.KindText},
	{name: "swarm-raft-election-tick", kind: api.KindNumber},
	{name: "swarm-raft-heartbeat-tick", kind: api.KindNumber},
	{name: "userns-remap", kind: api.KindText},
}

const noTLS = "nothing but the machine's Docker socket leads to it"

// ownEngineKeys make dockerd this guest's: how it is reached, and where it keeps things.
var ownEngineKeys = map[string]string{
	"hosts": "the engine is reached through the machine's Docker socket", "containerd": "the guest has one containerd",
	"data-root": "its data is on the machine's disk", "exec-root": "the guest is made for it", "pidfile": "the guest is made for it",
	"group": "the machine's Docker socket belongs to you alone", "rootless": "dockerd is root in the guest",
	"userland-proxy": "published ports are opened on this computer", "userland-proxy-path": "published ports are opened on this computer",
	"tls": noTLS, "tlsverify": noTLS, "tlscacert": noTLS, "tlscert": noTLS, "tlskey": noTLS,
}

// engineNames are all keys that dockerd is known to have, and then those that s have beside.
func engineNames(s ...api.Settings) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, k := range engineKeys {
			if !yield(k.name) {
				return
			}
		}
		more := map[string]bool{}
		for _, one := range s {
			for name := range keysOf(one.Engine) {
				if !isEngineKey(name) {
					more[name] = true
				}
			}
		}
		for _, name := range slices.Sorted(maps.Keys(more)) {
			if !yield(name) {
				return
			}
		}
	}
}

func engineKeyOf(name string) (engineKey, bool) {
	i := slices.IndexFunc(engineKeys, func(k engineKey) bool { return k.name == name })
	if i < 0 {
		return engineKey{name: name, kind: api.KindJSON, doc: "not a key that Coracle knows"}, false
	}
	return engineKeys[i], true
}

func isEngineKey(name string) bool {
	_, known := engineKeyOf(name)
	return known
}

func engineRow(name string) row {
	k, known := engineKeyOf(name)
	if k.doc == "" {
		k.doc = "as in dockerd's daemon.json"
	}
	from := ifPossible
	if k.soft {
		from = atOnce
	}
	return row{engine + "." + name, k.doc, from, func(s *api.Settings) any {
		f := engineField{engineKey: k, all: &s.Engine}
		if !known && f.raw() == nil || !known && f.texts() != nil {
			f.kind = api.KindList // until somebody says otherwise
		}
		return f
	}}
}

// engineField is one key within all of the engine's.
type engineField struct {
	engineKey
	all *json.RawMessage
}

// keysOf are the keys of all; what is no object has none, and Check's error.
func keysOf(all json.RawMessage) map[string]json.RawMessage {
	keys := map[string]json.RawMessage{}
	if len(all) > 0 && json.Unmarshal(all, &keys) != nil || keys == nil {
		return map[string]json.RawMessage{}
	}
	return keys
}

// raw is the value, nil where the key is not set.
func (f engineField) raw() json.RawMessage { return keysOf(*f.all)[f.name] }

// normal is raw in one form.
func (f engineField) normal() json.RawMessage {
	if one, err := normal(string(f.raw())); err == nil {
		return one
	}
	return f.raw()
}

// put sets the key to raw; nil removes it.
func (f engineField) put(raw json.RawMessage) {
	keys := keysOf(*f.all)
	if raw == nil {
		delete(keys, f.name)
	} else {
		keys[f.name] = raw
	}
	*f.all = nil
	if len(keys) > 0 {
		*f.all, _ = json.Marshal(keys) // each was JSON
	}
}

// texts is a list of texts, nil where the value is none.
func (f engineField) texts() []string {
	var list []string
	if json.Unmarshal(f.raw(), &list) != nil {
		return nil
	}
	return list
}

func (f engineField) get() []string {
	raw := f.raw()
	if raw == nil {
		return nil
	}
	if list := f.texts(); list != nil {
		return list
	}
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return []string{text}
	}
	return []string{string(raw)}
}

func (f engineField) set(values []string) error {
	key := engine + "." + f.name
	one := strings.TrimSpace(strings.Join(values, " "))
	known := isEngineKey(f.name)
	switch {
	case f.kind == api.KindList && known && !strings.HasPrefix(one, "["), len(values) != 1 && !known:
		f.put(encode(append([]string{}, unempty(values)...)))
		return nil
	case len(values) != 1:
		return bad("give one", "%s takes one value, not %d", key, len(values))
	case f.kind == api.KindSwitch:
		on, err := parseSwitch(one)
		if err != nil {
			return bad("give true or false", "%s: %v", key, err)
		}
		f.put(encode(on))
		return nil
	case f.kind == api.KindText:
		f.put(encode(values[0]))
		return nil
	}
	raw, err := normal(one)
	if err != nil && known {
		return bad("write it as JSON", "%s: %v", key, wrongKind(f.kind))
	}
	if err != nil {
		raw = encode(values[0])
	}
	f.put(raw)
	return nil
}

// encode is v, which is known to be encodable, as JSON.
func encode(v any) json.RawMessage {
	raw, _ := json.Marshal(v)
	return raw
}

func wrongKind(kind string) error {
	return fmt.Errorf("want %s", map[string]string{
		api.KindSwitch: "true or false", api.KindNumber: "a whole number", api.KindText: "a text", api.KindList: "a list of texts", api.KindJSON: "a JSON object or list",
	}[kind])
}

func checkEngine(s api.Settings, _ Host) error {
	if len(s.Engine) == 0 {
		return nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(s.Engine, &keys); err != nil || keys == nil {
		return bad(`write it as {"debug": true}`, "engine: not an object with keys of daemon.json")
	}
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		if why, own := ownEngineKeys[name]; own {
			return bad("remove it: "+why, "engine.%s is Coracle's own", name)
		}
		if k, known := engineKeyOf(name); known {
			if err := k.valid(keys[name]); err != nil {
				return bad("see `coracle config --help`", "engine.%s: %v", name, err)
			}
		}
	}
	return nil
}

// valid is whether raw is of the key's kind. What it means is dockerd's to judge, but for the addresses in which people err
// most.
func (k engineKey) valid(raw json.RawMessage) error {
	var texts []string
	var text *string
	wrong := false
	switch k.kind {
	case api.KindSwitch:
		wrong = string(raw) != "true" && string(raw) != "false"
	case api.KindNumber:
		_, err := strconv.ParseInt(string(raw), 10, 64)
		wrong = err != nil
	case api.KindText:
		wrong = json.Unmarshal(raw, &text) != nil || text == nil
		if !wrong {
			texts = []string{*text}
		}
	case api.KindList:
		wrong = json.Unmarshal(raw, &texts) != nil || texts == nil
	default:
		wrong = len(raw) == 0 || raw[0] != '{' && raw[0] != '['
	}
	if wrong {
		return wrongKind(k.kind)
	}
	for _, t := range texts {
		if k.check != nil {
			if err := k.check(t); err != nil {
				return err
			}
		}
	}
	return nil
}

var hostPort = regexp.MustCompile(`^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(:[0-9]{1,5})?$`)

func registry(text string) error {
	if _, err := netip.ParsePrefix(text); err == nil {
		return nil
	}
	if scheme, rest, ok := strings.Cut(text, "://"); ok {
		return fmt.Errorf("%q: leave out the %s://, give %s", text, scheme, rest)
	}
	if m := hostPort.FindStringSubmatch(text); m != nil {
		if port, err := strconv.Atoi(strings.TrimPrefix(m[3], ":")); m[3] == "" || err == nil && port > 0 && port < 1<<16 {
			return nil
		}
	}
	return fmt.Errorf("%q is no registry: want HOST, HOST:PORT or a network such as 10.0.0.0/8", text)
}

func mirror(text string) error {
	u, err := url.Parse(text)
	switch {
	case strings.Contains(text, "@"): // not to be repeated: it may hold a password
		return errors.New("the mirror's URL has a user in it: run `docker login` instead")
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		return fmt.Errorf("%.200q is no mirror: want https://HOST or http://HOST:PORT", text)
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%q is no mirror: its URL goes on behind the path", text)
	}
	return nil
}

func address(text string) error {
	if _, err := netip.ParseAddr(text); err != nil {
		return fmt.Errorf("%q is no IP address", text)
	}
	return nil
}

func network(text string) error {
	if _, err := netip.ParsePrefix(text); err != nil {
		return fmt.Errorf("%q is no network: want it as 172.20.0.1/16", text)
	}
	return nil
}
