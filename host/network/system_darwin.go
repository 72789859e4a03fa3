package network

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os/exec"

	"github.com/coracle-engine/coracle/guest/api"
)

// systemProxy asks macOS for the proxies of the network that is used now.
func systemProxy(ctx context.Context) (api.Proxy, error) {
	out, err := exec.CommandContext(ctx, "/usr/sbin/scutil", "--proxy").Output()
	if err != nil {
		return api.Proxy{}, fmt.Errorf("run scutil --proxy: %w", err)
	}
	return parseScutil(string(out)), nil
}

// hostCertificates finds the authorities in the system's own keychain, where administrators put a company's. Those that Apple
// ships are in another.
func hostCertificates(ctx context.Context, b *bundle) error {
	const keychain = "/Library/Keychains/System.keychain"
	out, err := exec.CommandContext(ctx, "/usr/bin/security", "find-certificate", "-a", "-p", keychain).Output()
	if err != nil {
		return fmt.Errorf("list certificates of %s: %w", keychain, err)
	}
	return b.addAuthorities(keychain, out)
}

// addAuthorities adds those certificates in text that may sign others.
func (b *bundle) addAuthorities(from string, text []byte) error {
	var errs error
	for _, der := range blocks(text) {
		if c, err := x509.ParseCertificate(der); err == nil && c.IsCA {
			errs = errors.Join(errs, b.add(from, der))
		}
	}
	return errs
}
