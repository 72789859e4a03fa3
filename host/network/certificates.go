package network

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxCertificates bounds what Certificates returns, in bytes: it travels in one body of guest/api with everything else.
const maxCertificates = 512 << 10

// maxCertificateFile bounds one file that is read for certificates, in bytes.
const maxCertificateFile = 16 << 20

// Certificates returns the certificates in files, and those of authorities that this host trusts beside the usual ones, as
// PEM, each once. Nothing but valid certificates is in it. An error names each file that could not be used; what is
// returned beside it is all the rest.
func Certificates(ctx context.Context, files []string) (string, error) {
	b := newBundle()
	var errs error
	for _, f := range files {
		errs = errors.Join(errs, b.addFile(f))
	}
	errs = errors.Join(errs, hostCertificates(ctx, b))
	return b.pem.String(), errs
}

// bundle collects certificates.
type bundle struct {
	seen map[[sha256.Size]byte]bool // by their DER; some only to be left out
	pem  strings.Builder
}

func newBundle() *bundle { return &bundle{seen: map[[sha256.Size]byte]bool{}} }

// add adds one certificate in DER; from is where it was found.
func (b *bundle) add(from string, der []byte) error {
	if _, err := x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("%s: parse certificate: %w", from, err)
	}
	sum := sha256.Sum256(der)
	if b.seen[sum] {
		return nil
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if b.pem.Len()+len(text) > maxCertificates {
		return fmt.Errorf("%s: more certificates than the %d KiB that the guest takes", from, maxCertificates>>10)
	}
	b.seen[sum] = true
	b.pem.Write(text)
	return nil
}

// addFile adds the certificates in a file of PEM or DER; one without any is an error.
func (b *bundle) addFile(path string) error {
	ders, err := certificatesIn(path)
	if err != nil {
		return err
	}
	if len(ders) == 0 {
		return fmt.Errorf("%s: no certificate in it: want PEM or DER", path)
	}
	for _, der := range ders {
		if err := b.add(path, der); err != nil {
			return err
		}
	}
	return nil
}

// blocks are the certificates in PEM, not yet parsed.
func blocks(text []byte) (ders [][]byte) {
	for {
		var p *pem.Block
		if p, text = pem.Decode(text); p == nil {
			return ders
		}
		if p.Type == "CERTIFICATE" {
			ders = append(ders, p.Bytes)
		}
	}
}

func certificatesIn(path string) ([][]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read certificates: %s is not a file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxCertificateFile+1))
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	if len(text) > maxCertificateFile {
		return nil, fmt.Errorf("read certificates: %s is too large to be a list of certificates", path)
	}
	if ders := blocks(text); len(ders) > 0 {
		return ders, nil
	}
	if _, err := x509.ParseCertificate(text); err == nil {
		return [][]byte{text}, nil
	}
	return nil, nil
}

// Where Linux distributions have an administrator put authorities, and those that keep what they ship apart from the whole.
var (
	anchors = []string{
		"usr/local/share/ca-certificates",          // Debian, Alpine
		"etc/pki/ca-trust/source/anchors",          // Fedora
		"etc/ca-certificates/trust-source/anchors", // Arch
		"etc/pki/trust/anchors",                    // SUSE
	}
	shipped = "usr/share/ca-certificates" // Debian, Alpine
	whole   = "etc/ssl/certs/ca-certificates.crt"
)

// addHost adds the authorities that a Linux system with its files below root trusts beside those that came with it: those of
// the administrator's directories, and what the whole list has that the distribution did not ship.
func (b *bundle) addHost(root string) error {
	var errs error
	for _, dir := range anchors {
		errs = errors.Join(errs, eachFile(filepath.Join(root, dir), func(path string) error {
			ders, err := certificatesIn(path)
			for _, der := range ders {
				err = errors.Join(err, b.add(path, der))
			}
			return err
		}))
	}
	theirs := 0
	eachFile(filepath.Join(root, shipped), func(path string) error {
		ders, err := certificatesIn(path)
		for _, der := range ders {
			b.seen[sha256.Sum256(der)] = true
			theirs++
		}
		return err
	})
	if theirs == 0 {
		return errs // nothing tells what is whose
	}
	path := filepath.Join(root, whole)
	ders, err := certificatesIn(path)
	if errors.Is(err, fs.ErrNotExist) {
		return errs
	}
	for _, der := range ders {
		err = errors.Join(err, b.add(path, der))
	}
	return errors.Join(errs, err)
}

// eachFile calls f with every file below dir; a directory that is not there has none.
func eachFile(dir string, f func(path string) error) error {
	var errs error
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = errors.Join(errs, err)
		case !d.IsDir() && !strings.HasPrefix(d.Name(), "."):
			if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
				errs = errors.Join(errs, f(path))
			}
		}
		return nil
	})
	return errors.Join(errs, err)
}
