package main

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/spf13/cobra"
)

func newEnv(a *app) *cobra.Command {
	var shell string
	var unset bool
	cmd := &cobra.Command{
		Use:   "env [NAME]",
		Short: "Print the shell command that leads Docker tools to a machine",
		Long: `Env prints the command that sets DOCKER_HOST in a shell, for tools that know no docker contexts, or for one terminal alone.
With --unset it prints the command that takes that back. The shell is guessed from $SHELL unless it is given.`,
		Example: `  eval "$(coracle env)"
  coracle env work --shell fish | source
  coracle env --shell powershell | Invoke-Expression
  for /f "delims=" %i in ('coracle env --shell cmd') do @%i
  eval "$(coracle env --unset)"`,
		Args:              between(0, 1),
		ValidArgsFunction: a.completeMachine,
		RunE: run(func(ctx context.Context, args []string) error {
			m, _, _, err := a.status(ctx, args)
			if err != nil && !(unset && len(args) == 0) {
				return err
			}
			if shell == "" {
				shell = guessShell(a.goos, a.getenv("SHELL"))
			}
			line, err := setVariable(shell, "DOCKER_HOST", dockerHost(m), unset)
			if err != nil {
				return err
			}
			a.stdout.printf("%s\n", line)
			return nil
		}),
	}
	cmd.Flags().StringVar(&shell, "shell", "", "bash (and sh, zsh), fish, powershell or cmd")
	cmd.Flags().BoolVar(&unset, "unset", false, "print the command that unsets it")
	_ = cmd.RegisterFlagCompletionFunc("shell", cobra.FixedCompletions([]string{"bash", "fish", "powershell", "cmd"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func guessShell(goos, shell string) string {
	switch name := strings.TrimSuffix(path.Base(strings.ReplaceAll(shell, `\`, "/")), ".exe"); {
	case name == "fish", name == "pwsh":
		return name
	case shell == "" && goos == "windows":
		return "powershell"
	}
	return "bash"
}

// setVariable is the command by which shell sets name to value for the programs it starts, or unsets it.
func setVariable(shell, name, value string, unset bool) (string, error) {
	switch shell {
	case "bash", "sh", "zsh", "dash", "ksh":
		if unset {
			return "unset " + name, nil
		}
		return "export " + name + "='" + strings.ReplaceAll(value, "'", `'\''`) + "'", nil
	case "fish":
		if unset {
			return "set -e " + name, nil
		}
		return "set -gx " + name + " '" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(value) + "'", nil
	case "powershell", "pwsh":
		if unset {
			return "Remove-Item Env:" + name + " -ErrorAction SilentlyContinue", nil
		}
		// PowerShell takes typographic single quotes for quotes, too; each is escaped by itself.
		quote := strings.NewReplacer("'", "''", "‘", "‘‘", "’", "’’", "‚", "‚‚", "‛", "‛‛")
		return "$Env:" + name + " = '" + quote.Replace(value) + "'", nil
	case "cmd":
		if unset {
			return `set "` + name + `="`, nil
		}
		if strings.ContainsAny(value, "\"%!^\r\n") { // nothing that works both typed and in a batch file
			return "", fmt.Errorf("%q cannot be quoted for cmd", value)
		}
		return `set "` + name + "=" + value + `"`, nil
	}
	return "", usageError{err: fmt.Errorf("invalid argument %q for \"--shell\" flag: want bash, fish, powershell or cmd", shell)}
}
