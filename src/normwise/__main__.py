"""`python -m normwise`: the same as the command `normwise`."""

from normwise.cli import main

main()
