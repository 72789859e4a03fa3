package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/coracle-engine/coracle/host/api"
)

func newLogs(a *app) *cobra.Command {
	var console, follow bool
	cmd := &cobra.Command{
		Use:   "logs [NAME]",
		Short: "Print a machine's log",
		Long: `Logs prints the log of the machine's host process, or with --console what the virtual machine's kernel and services wrote
to their console. Logs of containers come from docker logs.`,
		Example: `  coracle logs
  coracle logs --console -f work`,
		Args:              between(0, 1),
		ValidArgsFunction: a.completeMachine,
		RunE:              run(func(ctx context.Context, args []string) error { return a.logs(ctx, args, console, follow) }),
	}
	cmd.Flags().BoolVar(&console, "console", false, "print the virtual machine's console instead")
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on printing what is added, until interrupted")
	return cmd
}

func (a *app) logs(ctx context.Context, args []string, console, follow bool) error {
	m, err := a.machine(args)
	if err != nil {
		return err
	}
	if _, err := os.Stat(m.Dir); err != nil { // no more is asked: a machine that does not answer has a log all the more
		_, _, _, err := a.status(ctx, args)
		return err
	}
	path := m.Log()
	if console {
		path = m.Console()
	}
	var out io.Writer = a.stdout
	if a.stdout.tty {
		out = tamed{out}
	}
	l := &logReader{path: path, out: out}
	defer l.close()
	if err := l.copyNew(); err != nil {
		return err
	}
	if l.file == nil && !follow {
		return &api.Error{Code: api.CodeNotFound, Message: fmt.Sprintf("machine %q has no %s yet", m.Name, filepath.Base(path)), Hint: "run `coracle start " + m.Name + "`"}
	}
	if !follow {
		return nil
	}
	if err := watchFile(ctx, path, l.copyNew); ctx.Err() == nil {
		return err
	}
	return nil // interrupted, as following always ends
}

// logReader copies a file that grows, is cut short, or is replaced by another of its name.
type logReader struct {
	path string
	out  io.Writer
	file *os.File // nil: none there yet
	at   int64    // how much of it was copied, in bytes
}

func (l *logReader) close() {
	if l.file != nil {
		l.file.Close()
	}
}

// copyNew copies what was added since the last call.
func (l *logReader) copyNew() error {
	if err := l.copyRest(); err != nil {
		return err
	}
	now, err := os.Open(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if l.file != nil {
		was, err1 := l.file.Stat()
		is, err2 := now.Stat()
		if err := errors.Join(err1, err2); err != nil || os.SameFile(was, is) {
			return errors.Join(err, now.Close())
		}
		if err := l.copyRest(); err != nil { // written between our look at it and its renaming
			return errors.Join(err, now.Close())
		}
		l.file.Close()
	}
	l.file, l.at = now, 0
	return l.copyRest()
}

func (l *logReader) copyRest() error {
	if l.file == nil {
		return nil
	}
	st, err := l.file.Stat()
	if err != nil {
		return err
	}
	if st.Size() < l.at { // cut short: begun anew
		l.at = 0
	}
	n, err := io.Copy(l.out, io.NewSectionReader(l.file, l.at, st.Size()-l.at))
	l.at += n
	return err
}

// tamed writes for a terminal what a guest wrote: control characters but line feed and tab are shown as in ^[, so that
// they command nothing. C1 controls, which UTF-8 spells C2 80 to C2 9F, lose their first byte.
type tamed struct{ w io.Writer }

func (t tamed) Write(p []byte) (int, error) {
	buf := make([]byte, 0, len(p)+16)
	for i, b := range p {
		switch {
		case b == '\r' && i+1 < len(p) && p[i+1] == '\n': // a serial line's line end
		case b < ' ' && b != '\n' && b != '\t':
			buf = append(buf, '^', b+'@')
		case b == 0x7f:
			buf = append(buf, "^?"...)
		case b == 0xc2 && (i+1 == len(p) || p[i+1] < 0xa0):
		default:
			buf = append(buf, b)
		}
	}
	_, err := t.w.Write(buf)
	return len(p), err
}
