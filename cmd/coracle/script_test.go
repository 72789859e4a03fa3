package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	os.Setenv("GORACE", noExitSleep)
	testscript.Main(m, map[string]func(){"coracle": main, "coracled": fakeCoracled, "docker": fakeDocker})
}

// noExitSleep keeps programs built with -race from lingering for a second at their end: we run hundreds.
const noExitSleep = "atexit_sleep_ms=0"

// TestScripts tells the command line's stories: testdata/script/*.txtar, one for each verb.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"append":   appendLine,
			"wait-for": waitFor,
			"link":     hardLink,
		},
		Setup: func(env *testscript.Env) error {
			home := filepath.Join(env.WorkDir, "h")
			env.Setenv("CORACLE_HOME", home)
			env.Setenv("DOCKER_CONFIG", filepath.Join(env.WorkDir, "docker"))
			env.Setenv("TERM", "xterm")
			env.Setenv("GORACE", noExitSleep)
			exe, err := exec.LookPath("coracle")
			if err != nil {
				return err
			}
			env.Setenv("CORACLE_EXE", exe)
			env.Defer(func() { stopAll(home) })
			return nil
		},
	})
}

// appendLine is `append FILE TEXT`: a program that writes to its log.
func appendLine(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	ts.Check(err)
	_, err = f.WriteString(args[1] + "\n")
	ts.Check(err)
	ts.Check(f.Close())
}

// hardLink is `link OLD NEW`: another name for a program. A copy could not be run at once: a process that is forked
// meanwhile still has it open for writing ("text file busy").
func hardLink(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(os.Link(ts.MkAbs(args[0]), ts.MkAbs(args[1])))
}

// waitFor is `wait-for FILE [TEXT]`: until the file exists and holds the text.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	want := append(args, "")[1]
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(ts.MkAbs(args[0])); err != nil {
			continue
		}
		if data, err := os.ReadFile(ts.MkAbs(args[0])); want == "" || err == nil && strings.Contains(string(data), want) {
			return
		}
	}
	ts.Fatalf("%s did not come", args[0])
}
