"""Corpora, token files, and the order in which training sees them."""
