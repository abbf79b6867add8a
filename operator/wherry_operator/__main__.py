"""`python -m wherry_operator`."""

from wherry_operator.app import main

main()
