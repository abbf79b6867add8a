"""`python -m wherry_runner`."""

from wherry_runner.app import main

main()
