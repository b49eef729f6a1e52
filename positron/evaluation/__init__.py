"""Measure runs: bits per byte, comparisons, scaling laws, figures and reports."""
