"""`python -m wherry_operator`."""

from wherry_operator.start import main

main()
