"""Provide faster implementations of parts of `gpt.py`. Tests compare each of them with a plain implementation."""
