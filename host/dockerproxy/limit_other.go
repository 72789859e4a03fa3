//go:build !windows

package dockerproxy

import "syscall"

func isFileLimit(err error) bool {
	return err == syscall.EMFILE || err == syscall.ENFILE || err == syscall.ECONNABORTED
}
