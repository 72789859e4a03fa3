package api

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
)

// SecretLen is the length of a boot's secret in bytes.
const SecretLen = 32

const magic = "CORACLE1"

// ErrGreeting says that a peer did not greet as this boot's other side would.
var ErrGreeting = errors.New("peer does not know this boot's secret")

// Greet writes the greeting. The peer answers nothing: the stream can be used at once.
func Greet(w io.Writer, secret []byte) error {
	if len(secret) != SecretLen {
		return fmt.Errorf("greet with a secret of %d bytes: want %d", len(secret), SecretLen)
	}
	_, err := w.Write(append([]byte(magic), secret...))
	return err
}

// CheckGreeting reads the greeting and compares it in constant time. It reads not one byte more. The caller bounds it by a
// deadline, since a stranger may say nothing. An error means that the stream must be closed.
func CheckGreeting(r io.Reader, secret []byte) error {
	var buf [len(magic) + SecretLen]byte
	if _, err := io.ReadFull(r, buf[:]); err != nil {
		return fmt.Errorf("read greeting: %w", err)
	}
	want := append([]byte(magic), secret...)
	if len(want) != len(buf) || subtle.ConstantTimeCompare(buf[:], want) != 1 {
		return ErrGreeting
	}
	return nil
}
