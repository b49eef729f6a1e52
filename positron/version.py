"""Define the version of Positron."""

__version__ = "0.1.0"
