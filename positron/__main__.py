"""Run `python -m positron`, which does the same as `positron`."""

from positron.cli import main

main()
