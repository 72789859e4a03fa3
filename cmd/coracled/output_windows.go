package main

import "os"

// releaseOutput ends standard output for its reader.
func releaseOutput() {
	os.Stdout.Close()
	os.Stderr.Close()
}
