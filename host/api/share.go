package api

import (
	"errors"
	"strings"
)

// The words behind a share's path, in this order: PATH[:ro|:rw][:secrets].
const (
	readOnly  = ":ro"
	readWrite = ":rw" // the default; it is written where the path itself ends like such a word
	secrets   = ":secrets"
)

// String is the share as ParseShare reads it.
func (s Share) String() string {
	text := s.Path
	switch {
	case s.ReadOnly:
		text += readOnly
	case strings.HasSuffix(text, readOnly) || strings.HasSuffix(text, readWrite) || strings.HasSuffix(text, secrets):
		text += readWrite
	}
	if s.Secrets {
		text += secrets
	}
	return text
}

// ParseShare reads PATH[:ro][:secrets]. It looks neither whether the path is absolute nor whether there is such a directory.
func ParseShare(text string) (Share, error) {
	var s Share
	text, s.Secrets = strings.CutSuffix(text, secrets)
	text, s.ReadOnly = strings.CutSuffix(text, readOnly)
	if !s.ReadOnly {
		text = strings.TrimSuffix(text, readWrite)
	}
	if text == "" {
		return s, errors.New("a share needs a directory")
	}
	s.Path = text
	return s, nil
}
