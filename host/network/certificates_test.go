package network

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority makes a certificate that says its name; pad makes it longer.
func authority(t testing.TB, name string, pad int) (der []byte, text string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name, Organization: []string{strings.Repeat("x", pad)}},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	if der, err = x509.CreateCertificate(rand.Reader, c, c, key.Public(), key); err != nil {
		t.Fatal(err)
	}
	return der, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// names are the certificates in text, by their names.
func names(t *testing.T, text string) string {
	t.Helper()
	var all []string
	for rest := []byte(text); ; {
		var p *pem.Block
		if p, rest = pem.Decode(rest); p == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				t.Errorf("%q is no certificate", rest)
			}
			return strings.Join(all, " ")
		}
		c, err := x509.ParseCertificate(p.Bytes)
		if err != nil {
			t.Error(err)
			continue
		}
		all = append(all, c.Subject.CommonName)
	}
}

func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestHostCertificates(t *testing.T) {
	der, corp := authority(t, "corp", 0)
	_, mozilla := authority(t, "mozilla", 0)
	_, appended := authority(t, "appended", 0)
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"nothing": {},
		"Debian": {map[string]string{
			"usr/local/share/ca-certificates/corp/a.crt":    corp,
			"usr/share/ca-certificates/mozilla/M.crt":       mozilla,
			"etc/ssl/certs/ca-certificates.crt":             mozilla + corp + appended,
			"usr/local/share/ca-certificates/.hidden.crt":   mozilla,
			"usr/local/share/ca-certificates/corp/README":   "put them here",
			"usr/local/share/ca-certificates/corp/same.crt": "# the same again\n" + corp,
		}, "corp appended"},
		"Fedora": {map[string]string{
			"etc/pki/ca-trust/source/anchors/corp.der": string(der),
			"etc/ssl/certs/ca-certificates.crt":        mozilla, // whose it is cannot be told
		}, "corp"},
	} {
		b := newBundle()
		if err := b.addHost(tree(t, c.files)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := names(t, b.pem.String()); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestCertificateFiles(t *testing.T) {
	_, corp := authority(t, "corp", 0)
	key := "-----BEGIN PRIVATE KEY-----\nMAo=\n-----END PRIVATE KEY-----\n"
	root := tree(t, map[string]string{
		"good.pem": "comment\n" + key + corp + corp, "empty.pem": "", "key.pem": key,
		"bad.pem": "-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n",
	})
	at := func(name string) string { return filepath.Join(root, name) }
	for name, c := range map[string]struct {
		err string
	}{
		"good.pem": {""}, "empty.pem": {"no certificate in it"}, "key.pem": {"no certificate in it"}, "bad.pem": {"parse certificate"},
		"missing.pem": {"read certificates"}, ".": {"is not a file"},
	} {
		b := newBundle()
		err := b.addFile(at(name))
		if (c.err == "") != (err == nil) || err != nil && (!strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), root)) {
			t.Errorf("%s: %v, want %q and the file's name", name, err, c.err)
		}
		if got := names(t, b.pem.String()); (got == "corp") != (name == "good.pem") {
			t.Errorf("%s gave %q", name, got)
		}
	}
	got, err := Certificates(context.Background(), []string{at("missing.pem"), at("good.pem")})
	if err == nil || !strings.Contains(err.Error(), "missing.pem") || !strings.Contains(names(t, got), "corp") || strings.Contains(got, "PRIVATE") {
		t.Errorf("one file is missing: %q, %v", names(t, got), err)
	}
}

func TestCertificatesAreBounded(t *testing.T) {
	b := newBundle()
	var err error
	for i := 0; err == nil && i < 200; i++ {
		der, _ := authority(t, fmt.Sprint(i), 8<<10)
		err = b.add("much.pem", der)
	}
	if err == nil || !strings.Contains(err.Error(), "much.pem") || b.pem.Len() > maxCertificates {
		t.Errorf("%d bytes, %v", b.pem.Len(), err)
	}
}
