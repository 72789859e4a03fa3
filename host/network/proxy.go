package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"github.com/coracle-engine/coracle/guest/api"
)

// NoProxy as a setting means no proxy, whatever the host uses.
const NoProxy = "none"

// Proxy is what the guest is told about proxies: what settings say, or where they say nothing what the host's environment
// does (HTTP_PROXY, HTTPS_PROXY and NO_PROXY, or their lower case), or where that says nothing the system's settings (macOS,
// Windows). A proxy on the host's loopback becomes one on host.docker.internal, and what is in the virtual network is never
// asked of a proxy. The error names the setting or variable that is no proxy, and never its value, which may hold a password.
func (n *Network) Proxy(ctx context.Context, settings api.Proxy, getenv func(string) string) (api.Proxy, error) {
	system := environmentProxy(getenv)
	if system == (api.Proxy{}) {
		var err error
		if system, err = systemProxy(ctx); err != nil {
			n.log.Warn("the system's proxy settings cannot be read", "error", err)
		}
	}
	var out api.Proxy
	var err, errs error
	if out.HTTP, err = n.proxy("the HTTP proxy", settings.HTTP, system.HTTP); err != nil {
		errs = err
	}
	if out.HTTPS, err = n.proxy("the HTTPS proxy", settings.HTTPS, system.HTTPS); err != nil {
		errs = errors.Join(errs, err)
	}
	if errs != nil || out.HTTP == "" && out.HTTPS == "" {
		return api.Proxy{}, errs
	}
	out.No = settings.No
	if out.No == "" {
		out.No = system.No
	}
	out.No = n.without(out.No)
	return out, nil
}

func environmentProxy(getenv func(string) string) api.Proxy {
	get := func(name string) string {
		if v := getenv(name); v != "" {
			return v
		}
		return getenv(strings.ToLower(name))
	}
	return api.Proxy{HTTP: get("HTTP_PROXY"), HTTPS: get("HTTPS_PROXY"), No: get("NO_PROXY")}
}

// proxy checks one proxy and makes it the guest's. One without a scheme is an HTTP proxy, as everywhere.
func (n *Network) proxy(what, setting, system string) (string, error) {
	value := setting
	if value == "" {
		value = system
	}
	if value == "" || value == NoProxy {
		return "", nil
	}
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" {
		return "", fmt.Errorf("parse %s: want scheme://host:port", what)
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
	default:
		return "", fmt.Errorf("parse %s: %q is no kind of proxy", what, u.Scheme)
	}
	if !isLoopback(u.Hostname()) {
		return value, nil
	}
	if !n.loopback.Load() {
		n.log.Warn(what + " is on this machine, which the settings keep containers from: they will not reach it")
	}
	port := u.Port()
	u.Host = "host.docker.internal"
	if port != "" {
		u.Host = net.JoinHostPort(u.Host, port)
	}
	return u.String(), nil
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return strings.EqualFold(strings.TrimSuffix(host, "."), "localhost") || err == nil && a.Unmap().IsLoopback()
}

// without adds to a list of what is reached without a proxy what only the guest reaches.
func (n *Network) without(list string) string {
	var all []string
	seen := map[string]bool{}
	ours := []string{"localhost", "127.0.0.0/8", "::1", "host.docker.internal", "gateway.docker.internal", "host.containers.internal", n.addr.subnet.String()}
	for _, e := range append(strings.Split(list, ","), ours...) {
		if e = strings.TrimSpace(e); e != "" && !seen[e] {
			seen[e] = true
			all = append(all, e)
		}
	}
	return strings.Join(all, ",")
}

// parseScutil reads what macOS's `scutil --proxy` prints: "key : value" lines, and the exceptions as an array of them.
func parseScutil(text string) api.Proxy {
	values := map[string]string{}
	var exceptions []string
	inside := false
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		key, value, ok := strings.Cut(strings.TrimSpace(lines.Text()), " : ")
		switch {
		case key == "}":
			inside = false
		case !ok:
		case key == "ExceptionsList":
			inside = true
		case inside:
			exceptions = append(exceptions, value)
		default:
			values[key] = value
		}
	}
	at := func(kind string) string {
		if values[kind+"Enable"] != "1" || values[kind+"Proxy"] == "" {
			return ""
		}
		return "http://" + net.JoinHostPort(values[kind+"Proxy"], values[kind+"Port"])
	}
	return api.Proxy{HTTP: at("HTTP"), HTTPS: at("HTTPS"), No: exceptionList(exceptions)}
}

// parseInternetSettings reads Windows' ProxyServer ("host:port", or "http=host:port;https=host:port") and ProxyOverride.
func parseInternetSettings(server, override string) api.Proxy {
	p := api.Proxy{No: exceptionList(strings.Split(override, ";"))}
	for _, part := range strings.Split(server, ";") {
		kind, at, ok := strings.Cut(strings.TrimSpace(part), "=")
		switch {
		case !ok && kind != "":
			p.HTTP, p.HTTPS = kind, kind
		case kind == "http":
			p.HTTP = at
		case kind == "https":
			p.HTTPS = at
		}
	}
	return p
}

// exceptionList spells a system's exceptions as NO_PROXY does, where that can: *.example and its kin become .example, while
// names with a star elsewhere, and Windows' <local>, have no counterpart.
func exceptionList(all []string) string {
	var list []string
	for _, e := range all {
		e = strings.TrimSpace(e)
		if e = strings.TrimPrefix(e, "*"); e != "" && !strings.ContainsAny(e, "*<>,") {
			list = append(list, e)
		}
	}
	return strings.Join(list, ",")
}
