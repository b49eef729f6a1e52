"""Positron: train, understand and talk to a small GPT on a machine you own."""

__version__ = "0.1.0"
