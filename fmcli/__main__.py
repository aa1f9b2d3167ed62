"""`python -m fmcli`."""

from fmcli.cli import main

main()
