//go:build linux

package engine

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// trust is whom programs of the guest trust: the image's certificates, and the host's beside them. The root is read-only, so
// that the two together are mounted over the image's. Programs read them once: those that run go on with what they have.
type trust struct {
	bundle string // the image's, and where programs look
	joined string // the two together

	extra   string // the host's, as they are in force
	mounted bool
}

// set makes extra what is trusted beside the image's own.
func (t *trust) set(extra string) error {
	if extra == t.extra {
		return nil
	}
	ours, err := certificates(extra)
	if err != nil {
		return err
	}
	if t.mounted {
		if err := unix.Unmount(t.bundle, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount certificates: %w", err)
		}
		t.mounted, t.extra = false, ""
	}
	if len(ours) == 0 {
		return nil
	}
	base, err := os.ReadFile(t.bundle)
	if err != nil {
		return fmt.Errorf("read the image's certificates: %w", err)
	}
	if err := replace(t.joined, append(append(base, '\n'), ours...)); err != nil {
		return err
	}
	if err := os.Chmod(t.joined, 0o644); err != nil {
		return err
	}
	if err := unix.Mount(t.joined, t.bundle, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount certificates: %w", err)
	}
	t.mounted, t.extra = true, extra
	return nil
}

// certificates returns the certificates that text has in PEM, and nothing else of it.
func certificates(text string) ([]byte, error) {
	var out bytes.Buffer
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if err := pem.Encode(&out, &pem.Block{Type: block.Type, Bytes: block.Bytes}); err != nil {
			return nil, err
		}
	}
	if text != "" && out.Len() == 0 {
		return nil, errors.New("read certificates: there is none in PEM")
	}
	return out.Bytes(), nil
}
