package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/coracle-engine/coracle/host/api"
)

// configEdit has the user edit the settings file's text, or a FILE that is to become it, and gives the machine what comes of
// it. A text that is refused is kept.
func (a *app) configEdit(ctx context.Context, o *configOptions, args []string) error {
	m, err := o.place(a)
	if err != nil {
		return err
	}
	c, err := a.configure(ctx, o, api.Change{})
	if api.CodeOf(err) == api.CodeConfig { // a file that is broken is one to edit
		if text, rerr := os.ReadFile(m.Config()); rerr == nil {
			a.note(err.Error())
			c, err = api.Configuration{Text: string(text)}, nil
		}
	}
	if err != nil {
		return err
	}
	file := ""
	if len(args) > 0 {
		file = args[0]
	} else if file, err = writeTemporary(c.Text); err != nil {
		return err
	}
	text, err := a.edited(file)
	if err != nil {
		return err
	}
	c, err = a.configure(ctx, o, api.Change{Verb: api.ChangeText, Text: text, Was: c.Text})
	if err != nil {
		return kept(err, file)
	}
	if len(args) == 0 {
		_ = os.Remove(file)
	}
	return a.configChanged(c, o)
}

// kept adds to err how to go on with the text in file.
func kept(err error, file string) error {
	var e *api.Error
	if !errors.As(err, &e) {
		e = &api.Error{Code: api.CodeInternal}
	}
	hint := "your text is kept: run `coracle config edit " + file + "` to go on with it"
	if e.Hint != "" {
		hint = e.Hint + "; " + hint
	}
	return &api.Error{Code: e.Code, Message: "nothing is changed: " + err.Error(), Hint: hint}
}

func writeTemporary(text string) (string, error) {
	f, err := os.CreateTemp("", "coracle-config-*.yaml")
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// edited is what a file holds when the user's editor has ended.
func (a *app) edited(file string) (string, error) {
	words, err := a.editor()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(words[0], append(words[1:], file)...) // an interrupt is the editor's
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout.Writer, a.stderr.Writer
	if err := cmd.Run(); err != nil {
		return "", &api.Error{Code: api.CodeConfig, Message: fmt.Sprintf("nothing is changed: the editor %s: %v", words[0], err),
			Hint: "your text is kept in " + file + "; set EDITOR to another editor"}
	}
	text, err := os.ReadFile(file)
	return string(text), err
}

// editor is the user's, with its arguments.
func (a *app) editor() ([]string, error) {
	for _, key := range []string{"VISUAL", "EDITOR"} {
		if v := strings.TrimSpace(a.getenv(key)); v != "" {
			if _, err := exec.LookPath(v); err == nil { // a path may have spaces in it
				return []string{v}, nil
			}
			return strings.Fields(v), nil
		}
	}
	usual := []string{"editor", "vi", "nano"}
	if a.goos == "windows" {
		usual = []string{"notepad"}
	}
	for _, name := range usual {
		if p, err := exec.LookPath(name); err == nil {
			return []string{p}, nil
		}
	}
	return nil, &api.Error{Code: api.CodeNotFound, Message: "no editor is found", Hint: "set EDITOR to one, or use `coracle config set`"}
}
