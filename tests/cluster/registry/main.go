// Command registry is the CNCF distribution registry with only what Wherry's tests and demos use of it:
// storage in files or in memory, and htpasswd. Leaving the cloud drivers out halves it.
//
//	registry serve CONFIG.yml
//	registry htpasswd < "USER:PASSWORD" lines > "USER:BCRYPT" lines
package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/bcrypt"

	"github.com/distribution/distribution/v3/registry"
	_ "github.com/distribution/distribution/v3/registry/auth/htpasswd"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
)

// bcryptCost is the least that bcrypt allows: every request of a test is checked against it.
const bcryptCost = bcrypt.MinCost

var htpasswdCommand = &cobra.Command{
	Use:           "htpasswd",
	Short:         "turn USER:PASSWORD lines into the lines of an htpasswd file",
	Args:          cobra.NoArgs,
	SilenceUsage:  true,
	SilenceErrors: true,
	RunE: func(command *cobra.Command, _ []string) error {
		lines := bufio.NewScanner(command.InOrStdin())
		for lines.Scan() {
			user, password, found := strings.Cut(lines.Text(), ":")
			if !found || user == "" {
				return fmt.Errorf("not of the form USER:PASSWORD (user %q)", user)
			}
			hash, err := bcrypt.GenerateFromPassword([]byte(password), bcryptCost)
			if err != nil {
				return fmt.Errorf("user %q: %w", user, err)
			}
			fmt.Fprintf(command.OutOrStdout(), "%s:%s\n", user, hash)
		}
		return lines.Err()
	},
}

func main() {
	registry.RootCmd.AddCommand(htpasswdCommand)
	if err := registry.RootCmd.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
