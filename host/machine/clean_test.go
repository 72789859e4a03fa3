package machine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// FuzzClean has a guest say anything at all, in an event and on its console.
func FuzzClean(f *testing.F) {
	for _, s := range []string{"dockerd", "", "\x1b[2J\x1b]0;title\a", "a\r\nb\tc\x00", "\xff\xfe", "\u202egnp.exe", strings.Repeat("ü", 300), strings.Repeat("line\n", 5000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := clean(s)
		if len(got) > maxText+len("…") || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q became %q", s, got)
		}
		if again := clean(got); again != got && len(got) <= maxText {
			t.Errorf("%q became %q, and then %q", s, got, again)
		}
		console := filepath.Join(t.TempDir(), "console")
		if err := os.WriteFile(console, []byte("earlier boot\n"+s), 0o600); err != nil {
			t.Fatal(err)
		}
		m := New(Config{})
		m.cfg.VM.Console = console
		tail := m.consoleTail(&boot{consoleFrom: int64(len("earlier boot\n"))})
		if strings.Count(tail, "\n") > tailLines || len(tail) > (tailLines+1)*(maxText+10) || strings.ContainsFunc(tail, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
			t.Errorf("console of %q gives %q", s, tail)
		}
		if strings.Contains(tail, "earlier boot") && !strings.Contains(s, "earlier boot") {
			t.Errorf("console gives an earlier boot's words: %q", tail)
		}
	})
}
