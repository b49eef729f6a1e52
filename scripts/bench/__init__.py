"""Measure training, generation and data preparation, and compare them with other projects.

Run a benchmark with `python -m scripts.bench.NAME`, for example `python -m scripts.bench.train`.
"""

from __future__ import annotations

import os
import sys


def load_average() -> str:
    """Return the system's load average over the last minute as text, or "unknown" on Windows, which has none."""
    if sys.platform == "win32":
        return "unknown"
    return f"{os.getloadavg()[0]:.1f}"
