//go:build !windows

package main

import "os"

// releaseOutput ends standard output for its reader, and puts /dev/null there: a closed number would be given to the next
// file that is opened, and a stray print would go into it.
func releaseOutput() {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer null.Close()
	replaceDescriptor(int(null.Fd()), 1)
	replaceDescriptor(int(null.Fd()), 2)
}
