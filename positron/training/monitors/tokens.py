"""Measure the loss of frequent and rare tokens, and of tokens early and late in the context."""

from __future__ import annotations

import logging
from itertools import pairwise

import lightning as L
import numpy as np
import torch
from torch import Tensor

from positron.config import IGNORE
from positron.model.gpt import GPT, positions_in_documents
from positron.model.kernels.loss import token_losses
from positron.training.module import TrainingModule
from positron.training.monitors.probe import Probe, ProbeMonitor
from positron.training.objective.base import Objective

logger = logging.getLogger(__name__)

FREQUENCY_BINS, POSITION_BINS = 5, 8


def frequency_bins(counts: np.ndarray, n_bins: int = FREQUENCY_BINS) -> np.ndarray:
    """Assign each token id to a bin by its frequency, `counts` (V,) -> (V,); bin 0 has the most frequent ids.

    The total frequency of the ids is about the same in each bin. An id that is frequent enough to fill several bins is in the
    first of these bins, and the other bins stay empty. Ids that never occur are in the last bin.
    """
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    bins = np.empty(len(counts), dtype=np.int64)
    bins[order] = np.minimum(n_bins - 1, before * n_bins // max(1, counts.sum()))
    return bins


def position_edges(context: int, n_bins: int = POSITION_BINS) -> list[int]:
    """Divide the positions below `context` into at most `n_bins` bins; return the first position of each bin, then `context`.

    For context=1024 and n_bins=8, the result is [0, 8, 16, 32, ..., 512, 1024]. From the second bin on, each bin is as long as
    all bins before it together; the last bin may be shorter. A short context has fewer bins.
    """
    powers = [1 << n for n in range(context.bit_length()) if 1 << n < context]
    return [0, *powers[1 - n_bins :], context]


def bin_means(values: np.ndarray, bins: np.ndarray, names: list[str]) -> dict[str, float]:
    """Return a dict from the name of each bin that is not empty to the mean of its values.

    `values[i]` is in the bin with the index `bins[i]`, whose name is `names[bins[i]]`.
    """
    counts = np.bincount(bins, minlength=len(names))
    sums = np.bincount(bins, weights=values, minlength=len(names))
    return {name: float(sums[i] / counts[i]) for i, name in enumerate(names) if counts[i]}


class TokenLosses(ProbeMonitor):
    """Measure the loss on the probe, in nats per token, for targets of different frequency and position.

    The probe consists of a few fixed validation windows.

    loss_by_frequency/1 is the loss of the most frequent targets, and loss_by_frequency/5 is the loss of the rarest targets.
    loss_by_position/64-127 is the loss of targets that are predicted at positions 64 to 127 of the window, or of their
    document if attention does not cross documents.
    """

    def __init__(
        self,
        every: int,
        probe: Probe,
        objective: Objective,
        vocab_size: int,
    ) -> None:
        super().__init__(every, probe)
        self.objective, self.vocab_size = objective, vocab_size

    def on_train_start(self, trainer: L.Trainer, module: TrainingModule) -> None:  # type: ignore[override]
        """Count the training targets and assign each id to a frequency bin."""
        if trainer.is_global_zero:
            counts = self.objective.target_counts(self.vocab_size)
            self.bins = frequency_bins(counts)
            sizes = np.bincount(self.bins[counts > 0], minlength=FREQUENCY_BINS)
            logger.info(
                f"loss_by_frequency/1 to {FREQUENCY_BINS} are the losses of groups of "
                f"{', '.join(f'{n:,}' for n in sizes)} different tokens, the most frequent tokens first"
            )

    def measure(self, model: GPT, probe: Probe, documents: Tensor | None) -> dict[str, float]:
        """Return a dict from metric name to mean loss, for each bin of token frequencies and each bin of positions.

        `probe` holds N validation windows of T tokens. `documents` (N, T): the index of each token's document in its window.
        With it, positions are counted from the beginning of the document; with None, from the beginning of the window. Bins
        without targets are left out.
        """
        hidden = model.hidden(probe.x, documents).flatten(0, 1)
        losses = token_losses(hidden, model.head_weight, probe.y.flatten()).cpu().double().numpy()
        if documents is None:
            places = torch.arange(probe.x.shape[1]).expand(probe.x.shape)
        else:
            places = positions_in_documents(documents).cpu()
        targets, place = probe.y.flatten().cpu().numpy(), places.flatten().numpy()
        scored = targets != IGNORE
        edges = position_edges(model.config.context_length)
        span = np.searchsorted(edges, place[scored], side="right") - 1
        frequencies = [f"loss_by_frequency/{i + 1}" for i in range(FREQUENCY_BINS)]
        positions = [
            f"loss_by_position/{a}-{b - 1}" if b - a > 1 else f"loss_by_position/{a}" for a, b in pairwise(edges)
        ]
        return {
            **bin_means(losses[scored], self.bins[targets[scored]], frequencies),
            **bin_means(losses[scored], span, positions),
        }
