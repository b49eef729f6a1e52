"""Measure training, generation and data preparation, and compare them with other projects.

Run a benchmark with `python -m scripts.bench.NAME`, for example `python -m scripts.bench.train`.
"""
