"""Faster implementations of parts of `gpt.py`, each tested against the plain one."""
