//go:build linux

package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"

	"github.com/coracle-engine/coracle/guest/api"
)

// ProxyPath is the program that dockerd starts for each published port. It is ours: it has the host open the port.
const ProxyPath = "/usr/bin/docker-proxy"

// settings are the keys of daemon.json.
type settings map[string]any

// own are the keys that make dockerd this guest's; nobody else may set them.
var own = settings{
	"hosts":               []any{"unix://" + Socket},
	"containerd":          containerdSocket,
	"data-root":           "/var/lib/docker",
	"exec-root":           "/run/docker",
	"pidfile":             "/run/docker.pid",
	"userland-proxy":      true,
	"userland-proxy-path": ProxyPath,
}

// reloadable are the keys that dockerd reads again at SIGHUP (daemon/reload.go of moby), with their defaults. dockerd leaves
// a value as it is when its key is gone from the file, so all are always there. Not here: features, most of which count at the
// start alone, and authorization-plugins, since one that does not answer at a reload ends dockerd.
var reloadable = settings{
	"debug":                    false,
	"labels":                   []any{},
	"insecure-registries":      []any{},
	"registry-mirrors":         []any{},
	liveRestore:                false,
	"max-concurrent-downloads": json.Number("3"),
	"max-concurrent-uploads":   json.Number("5"),
	"max-download-attempts":    json.Number("5"),
	"shutdown-timeout":         json.Number("15"),
	"default-stop-timeout":     json.Number("10"),
	"runtimes":                 map[string]any{},
	"default-runtime":          "runc",
	"default-shm-size":         "64M",
	"default-ipc-mode":         "private",
	"default-cgroupns-mode":    "private",
	"network-diagnostic-port":  json.Number("0"),
}

const liveRestore = "live-restore"

// bridging are the keys that a starting dockerd leaves alone while containers run.
var bridging = []string{
	"bridge", "bip", "bip6", "fixed-cidr", "fixed-cidr-v6", "ipv6", "mtu", "ip", "default-gateway", "default-gateway-v6", "icc",
	"default-address-pools",
}

// render makes the whole of daemon.json for spec. The user's keys come first, then what the rest of spec asks for, then ours.
func render(spec api.Spec) (settings, error) {
	merged := settings{}
	if len(bytes.TrimSpace(spec.Daemon)) > 0 {
		d := json.NewDecoder(bytes.NewReader(spec.Daemon))
		d.UseNumber()
		if err := d.Decode(&merged); err != nil {
			return nil, fmt.Errorf("parse daemon keys: %w", err)
		}
		if d.More() {
			return nil, errors.New("parse daemon keys: there is more behind the object")
		}
		if merged == nil { // the JSON null
			merged = settings{}
		}
	}
	for key := range merged {
		if _, ok := own[key]; ok {
			return nil, fmt.Errorf("daemon key %q is coracle's own: remove it", key)
		}
	}
	for _, more := range []settings{asked(spec, merged), defaults, reloadable, own} {
		for key, value := range more {
			if err := merged.fill(key, value); err != nil {
				return nil, err
			}
		}
	}
	return merged, nil
}

// defaults are what no Spec asks for and any may override. nftables takes one program run where iptables takes a hundred;
// Swarm with it is behind a feature of its own.
var defaults = settings{
	"firewall-backend": "nftables",
	"features":         map[string]any{"swarm-nftables": true},
}

// asked is what the parts of spec other than the user's keys come to.
func asked(spec api.Spec, given settings) settings {
	s := settings{}
	proxies := map[string]any{}
	for key, value := range map[string]string{"http-proxy": spec.Proxy.HTTP, "https-proxy": spec.Proxy.HTTPS, "no-proxy": spec.Proxy.No} {
		if value != "" {
			proxies[key] = value
		}
	}
	if len(proxies) > 0 { // dockerd makes them its environment: BuildKit, git and ssh have them from there
		s["proxies"] = proxies
	}
	if _, old := given["host-gateway-ip"]; !old && spec.Network.Host != "" {
		s["host-gateway-ips"] = []any{spec.Network.Host}
	}
	if mtu := spec.Network.MTU; mtu > 1500 { // docker's own default
		s["mtu"] = json.Number(strconv.Itoa(mtu))
		s["default-network-opts"] = map[string]any{"bridge": map[string]any{"com.docker.network.driver.mtu": strconv.Itoa(mtu)}}
	}
	return s
}

// fill sets key where it is not set; of objects it fills each member.
func (s settings) fill(key string, value any) error {
	have, given := s[key]
	base, object := value.(map[string]any)
	if !object {
		if !given {
			s[key] = value
		}
		return nil
	}
	both, ok := have.(map[string]any)
	if given && !ok {
		return fmt.Errorf("daemon key %q is not an object", key)
	}
	both = maps.Clone(both)
	if both == nil {
		both = map[string]any{}
	}
	for k, v := range base {
		if err := settings(both).fill(k, v); err != nil {
			return err
		}
	}
	s[key] = both
	return nil
}

// with returns s with key set to value.
func (s settings) with(key string, value any) settings {
	c := maps.Clone(s)
	c[key] = value
	return c
}

func (s settings) live() bool { return s[liveRestore] == true }

// differ lists the keys in which s and t differ.
func (s settings) differ(t settings) []string {
	var keys []string
	for key := range t {
		if _, ok := s[key]; !ok {
			keys = append(keys, key)
		}
	}
	for key, value := range s {
		if other, ok := t[key]; !ok || !reflect.DeepEqual(value, other) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}
