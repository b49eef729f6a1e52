"""How good is it: bits per byte, plots, the report of a run."""
