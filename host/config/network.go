package config

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/coracle-engine/coracle/host/api"
)

func checkPorts(s api.Settings, _ Host) error {
	addr, err := netip.ParseAddr(s.Ports.Address)
	if err != nil || addr.IsMulticast() {
		return bad("give 127.0.0.1 for this host alone, 0.0.0.0 for all networks, or one address of this host's",
			"ports.address is %q: not an IP address", s.Ports.Address)
	}
	return nil
}

func checkNetwork(s api.Settings, _ Host) error {
	for _, p := range []struct{ key, value string }{{"network.http-proxy", s.Network.HTTPProxy}, {"network.https-proxy", s.Network.HTTPSProxy}} {
		if err := checkProxy(p.key, p.value); err != nil {
			return err
		}
	}
	if strings.ContainsFunc(s.Network.NoProxy, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }) {
		return bad("separate names and networks by commas alone, as in localhost,.example.com,10.0.0.0/8", "network.no-proxy has white space in it")
	}
	_, err := Certificates(s)
	return err
}

var proxySchemes = []string{"http", "https", "socks5", "socks5h"}

// checkProxy never repeats the value, which may hold a password.
func checkProxy(key, value string) error {
	if value == "" || value == "none" { // none: whatever the host uses
		return nil
	}
	u, err := url.Parse(value)
	if err != nil || u.Hostname() == "" || !slices.Contains(proxySchemes, u.Scheme) || u.RawQuery != "" || u.Fragment != "" {
		return bad("write it as http://HOST:PORT, or none; the scheme may be "+strings.Join(proxySchemes, ", "), "%s is not a proxy's URL", key)
	}
	return nil
}

// maxCertificates bounds a file with certificates, in bytes: a whole system's trust store is a quarter of it.
const maxCertificates = 1 << 20

// Certificates is what the files of network.certificates hold, in PEM. Errors are of class api.CodeConfig and name the file.
func Certificates(s api.Settings) (string, error) {
	var all strings.Builder
	for _, path := range s.Network.Certificates {
		if !filepath.IsAbs(path) {
			return "", bad("give an absolute path", "network.certificates has %q: not an absolute path", path)
		}
		if err := readCertificates(&all, path); err != nil {
			return "", bad("give a readable file with CA certificates in PEM", "network.certificates: %v", err)
		}
	}
	return all.String(), nil
}

// readCertificates copies the certificates of one file, and nothing that stands between them: a key there is nobody's
// business.
func readCertificates(to *strings.Builder, path string) error {
	st, err := os.Stat(path)
	if err == nil && !st.Mode().IsRegular() { // opening a pipe would wait
		err = fmt.Errorf("%s is not a file", path)
	}
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCertificates+1))
	if err != nil {
		return err
	}
	if len(data) > maxCertificates {
		return fmt.Errorf("%s is larger than %s", path, FormatSize(maxCertificates))
	}
	found := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		found++
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return fmt.Errorf("%s: certificate %d: %w", path, found, err)
		}
		_ = pem.Encode(to, &pem.Block{Type: block.Type, Bytes: block.Bytes}) // a Builder takes all
	}
	switch {
	case found > 0:
		return nil
	case len(bytes.TrimSpace(data)) == 0:
		return fmt.Errorf("%s is empty", path)
	}
	return fmt.Errorf("%s has no certificate in PEM", path)
}
