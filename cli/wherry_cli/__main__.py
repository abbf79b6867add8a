"""`python -m wherry_cli`."""

from wherry_cli.app import main

main()
