"""Decide which of the processes that train one run prints and writes for all of them."""

from __future__ import annotations

import os


def first_rank(processes: int) -> bool:
    """Tell whether this process is the first of the `processes` that train one run, before they are connected.

    A single process is always the first: containers, notebooks, launchers and SLURM may leave rank variables in its
    environment that belong to another program.
    """
    ranks = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return processes == 1 or all((os.environ.get(key) or "0") == "0" for key in ranks)
