//go:build !linux

package main

import (
	"fmt"
	"runtime"
)

func lock(string) (func(), error) {
	return nil, fmt.Errorf("images are built on Debian, not on %s", runtime.GOOS)
}
