"""Benchmarks: what training, writing and reading cost, beside peers. Run one by `python -m scripts.bench.train`."""
