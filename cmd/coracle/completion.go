package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

func newCompletion(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "completion SHELL",
		Short: "Print a script that completes commands in a shell",
		Long: `Completion prints a script for bash, zsh, fish or powershell that completes coracle's verbs, flags and machines.
Load it from the shell's start-up file.`,
		Example: `  source <(coracle completion bash)
  coracle completion zsh > "${fpath[1]}/_coracle"
  coracle completion fish | source
  coracle completion powershell | Out-String | Invoke-Expression`,
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				switch root := cmd.Root(); args[0] {
				case "bash":
					return root.GenBashCompletionV2(a.stdout, true)
				case "zsh":
					return root.GenZshCompletion(a.stdout)
				case "fish":
					return root.GenFishCompletion(a.stdout, true)
				case "powershell":
					return root.GenPowerShellCompletionWithDesc(a.stdout)
				}
			}
			return usageError{err: fmt.Errorf("%s wants the name of a shell", cmd.CommandPath()), hint: "one of bash, zsh, fish, powershell"}
		},
	}
	return cmd
}
