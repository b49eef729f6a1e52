"""Run the command `python -m positron.dashboard`."""

from positron.dashboard import main

main()
