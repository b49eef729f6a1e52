"""`python -m positron`: the same as `positron`."""

from positron.cli import main

main()
