package main

import (
	"os/exec"
	"strings"
	"testing"
)

func TestSetVariable(t *testing.T) {
	const odd = `unix:///a b/$(rm)/'q'/"d"/\n` + "`id`/’x;&|%TEMP%!"
	for _, tc := range []struct{ shell, value, want string }{
		{"bash", "unix:///h/d.sock", `export V='unix:///h/d.sock'`},
		{"zsh", odd, `export V='unix:///a b/$(rm)/'\''q'\''/"d"/\n` + "`id`/’x;&|%TEMP%!'"},
		{"fish", odd, `set -gx V 'unix:///a b/$(rm)/\'q\'/"d"/\\n` + "`id`/’x;&|%TEMP%!'"},
		{"powershell", odd, `$Env:V = 'unix:///a b/$(rm)/''q''/"d"/\n` + "`id`/’’x;&|%TEMP%!'"},
		{"pwsh", "a‘b", `$Env:V = 'a‘‘b'`},
		{"cmd", `unix://C:\Users\A & B\d.sock`, `set "V=unix://C:\Users\A & B\d.sock"`},
	} {
		got, err := setVariable(tc.shell, "V", tc.value, false)
		if err != nil || got != tc.want {
			t.Errorf("%s: got %s, %v\nwant %s", tc.shell, got, err, tc.want)
		}
	}
	for _, value := range []string{`a"b`, "a%b%", "a!b", "a\nb", "a^b"} {
		if got, err := setVariable("cmd", "V", value, false); err == nil {
			t.Errorf("cmd took %q: %s", value, got)
		}
	}
	for shell, want := range map[string]string{"sh": "unset V", "fish": "set -e V", "powershell": "Remove-Item Env:V -ErrorAction SilentlyContinue", "cmd": `set "V="`} {
		if got, err := setVariable(shell, "V", "x", true); err != nil || got != want {
			t.Errorf("unset in %s: got %s, %v: want %s", shell, got, err, want)
		}
	}
}

// FuzzSetVariable lets a real shell read what was quoted for it.
func FuzzSetVariable(f *testing.F) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		f.Skip("needs a POSIX shell on PATH")
	}
	for _, s := range []string{"", "a b", "'", `'\''`, "$(id)", "a\nb\n", `\`, "\xff", "‘"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if strings.Contains(value, "\x00") {
			return // no path has one
		}
		line, err := setVariable("bash", "V", value, false)
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(sh, "-c", line+"\nprintf %s. \"$V\"").Output()
		if err != nil || string(out) != value+"." {
			t.Errorf("%s: the shell read %q, %v: want %q", line, out, err, value)
		}
	})
}

func TestGuessShell(t *testing.T) {
	for _, tc := range []struct{ goos, shell, want string }{
		{"linux", "/bin/bash", "bash"}, {"linux", "", "bash"}, {"darwin", "/opt/homebrew/bin/fish", "fish"},
		{"linux", "/usr/bin/pwsh", "pwsh"}, {"windows", "", "powershell"}, {"windows", `C:\Program Files\Git\bin\bash.exe`, "bash"},
		{"linux", "/bin/tcsh", "bash"},
	} {
		if got := guessShell(tc.goos, tc.shell); got != tc.want {
			t.Errorf("guessShell(%q, %q) = %s: want %s", tc.goos, tc.shell, got, tc.want)
		}
	}
}
