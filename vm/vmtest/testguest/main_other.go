//go:build !linux

package main

import "os"

// The guest is Linux alone.
func main() { os.Exit(1) }
