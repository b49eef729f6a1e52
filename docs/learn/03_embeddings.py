"""The numbers of chapter 3: a table of four tokens with two channels, and smearing."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from numpy_ref.embedding import (
    embedding_backward,
    embedding_forward,
    sinusoidal_table,
    smear_backward,
    smear_forward,
)
from scripts.learn_pages import Value, panels

IDS = np.array([2, 0, 2])
TABLE = np.array([[1.0, 2.0], [0.0, 3.0], [5.0, -1.0], [4.0, 4.0]])
DY = np.array([[1.0, 0.0], [0.0, 2.0], [2.0, -1.0]])
SHARE = np.array([0.5, -1.0])


def example() -> dict[str, Value]:
    """Compute an embedding and a smearing, forward and backward."""
    y, cache = embedding_forward(IDS, TABLE)
    _, dtable = embedding_backward(DY, cache)
    smeared, smear_cache = smear_forward(y[None], SHARE)
    dx, dshare = smear_backward(DY[None], smear_cache)
    total = np.float16(0)
    while total + np.float16(1) != total:
        total += np.float16(1)
    return {
        "ids": ", ".join(map(str, IDS)),
        "W": TABLE,
        "y": y,
        "dy": DY,
        "dW": dtable,
        "w": SHARE,
        "smeared": smeared[0],
        "smear_dx": dx[0],
        "smear_dw": dshare,
        "half_stop": float(total),
    }


def exercises() -> list[dict[str, Value]]:
    """Answer the three exercises."""
    _, dtable = embedding_backward(np.ones((3, 2)), embedding_forward(np.array([1, 1, 3]), TABLE)[1])
    rows = sinusoidal_table(3, 2)  # places 0, 1, 2
    shift = rows[1:].T @ np.linalg.inv(rows[:-1].T)  # from places 0 and 1 to places 1 and 2
    return [
        {"twice_dW": dtable},
        {"onehot_bytes": 4096 * 16_000 * np.dtype(np.float32).itemsize, "id_bytes": 4096 * 4},
        {"shift": shift},
    ]


def figure() -> Figure:
    """Draw a sinusoidal table as a heat map."""
    table = sinusoidal_table(64, 32)
    drawing, (ax,) = panels(6, 3.2)
    image = ax.imshow(table, cmap="RdYlBu", aspect="auto", interpolation="nearest")
    ax.set_xlabel("channel: 16 sines, then 16 cosines")
    ax.set_ylabel("place in the text")
    drawing.colorbar(image, ax=ax)
    return drawing
