package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"golang.org/x/term"
)

// screen is where output goes, and what may be done there. Live lines and bars are for terminals alone.
type screen struct {
	io.Writer
	fd    int
	tty   bool // a terminal that understands control sequences
	color bool
}

func openScreen(f *os.File, getenv func(string) string) screen {
	s := screen{Writer: f, fd: int(f.Fd())}
	s.tty = term.IsTerminal(s.fd) && getenv("TERM") != "dumb" && enableSequences(f)
	s.color = s.tty && getenv("NO_COLOR") == ""
	return s
}

func (s screen) printf(format string, args ...any) { fmt.Fprintf(s.Writer, format, args...) }

// width is the terminal's, in characters.
func (s screen) width() int {
	if w, _, err := term.GetSize(s.fd); err == nil && w > 0 {
		return w
	}
	return 80
}

// Colours as SGR parameters (ECMA-48, 8.3.117).
const (
	bold   = "1"
	faint  = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
)

func (s screen) paint(color, text string) string {
	if !s.color || color == "" || text == "" {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// json writes v for scripts.
func (s screen) json(v any) error {
	enc := json.NewEncoder(s.Writer)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// jsonLine writes v as one line, of a stream for scripts.
func (s screen) jsonLine(v any) error { return json.NewEncoder(s.Writer).Encode(v) }

// table writes rows in columns, the last one ragged. Cells may be painted.
func (s screen) table(rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], visible(cell))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-visible(cell)+2))
			}
		}
		s.printf("%s\n", strings.TrimRight(line.String(), " "))
	}
}

// visible is the number of characters of text that the screen shows.
func visible(text string) int {
	n, sequence := 0, false
	for _, r := range text {
		switch {
		case r == '\x1b':
			sequence = true
		case sequence:
			sequence = r != 'm'
		default:
			n++
		}
	}
	return n
}

// printable is text in which nothing commands the terminal: much of what we print was said by a guest.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return '\uFFFD'
		}
		return r
	}, text)
}
