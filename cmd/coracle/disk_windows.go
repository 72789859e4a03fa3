package main

import "os"

// diskUsed is the size of the file at path, in bytes; 0 where there is none.
func diskUsed(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}
