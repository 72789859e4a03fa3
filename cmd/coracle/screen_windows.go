package main

import (
	"os"

	"golang.org/x/sys/windows"
)

// enableSequences asks the console to understand control sequences; one before Windows 10 does not.
func enableSequences(f *os.File) bool {
	h := windows.Handle(f.Fd())
	var mode uint32
	return windows.GetConsoleMode(h, &mode) == nil && windows.SetConsoleMode(h, mode|windows.ENABLE_VIRTUAL_TERMINAL_PROCESSING) == nil
}
