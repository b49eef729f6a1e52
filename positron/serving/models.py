"""The models that a server serves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from positron.inference.sessions import Sessions
from positron.inference.text_model import Writer
from positron.run.folder import Run
from positron.run.load import load_model
from positron.serving.worker import Worker
from positron.system.errors import UserError
from positron.text.tokenizer import Tokenizer

MAX_SLOTS = 32  # texts that are written at the same time
MAX_CACHE_BYTES = 2**30  # of all slots of a model; an unused slot takes no memory
MAX_WAITING = 128  # texts that wait for a slot


@dataclass(frozen=True)
class Served:
    """Hold a model with its worker; `chats`: the run was fine-tuned on conversations."""

    name: str
    chats: bool
    context: int
    created: int  # Unix time of the checkpoint
    tokenizer: Tokenizer
    worker: Worker


def slots_of(writer: Writer) -> int:
    """Return the number of texts to write at the same time: as many as the memory for their caches allows."""
    decoder = writer.engine().decoder
    config = writer.model.config
    numbers = 2 * config.n_layer * config.kv_heads * config.d_head * config.context_length
    size = torch.finfo(decoder.cache_dtype).bits // 8
    return max(1, min(MAX_SLOTS, math.floor(MAX_CACHE_BYTES / (numbers * size))))


def serve_run(run: Run, weights: str = "fp32") -> Served:
    """Load a run and start its worker; raises UserError if it cannot be loaded."""
    model, tokenizer, path = load_model(run)
    writer = Writer(model, tokenizer, weights=weights)
    worker = Worker(Sessions(writer.engine(), slots_of(writer)), MAX_WAITING)
    created, name = int(path.stat().st_mtime), run.folder.resolve().name
    return Served(name, run.is_chat, model.config.context_length, created, tokenizer, worker)


def refuse_same_names(runs: list[Run]) -> None:
    """Raise UserError if two runs would be served under one name."""
    names: dict[str, Run] = {}
    for run in runs:
        other = names.setdefault(run.folder.resolve().name, run)
        if other is not run:
            raise UserError(
                f"{other.folder} and {run.folder} would both be served as {run.folder.name}: rename one of the folders"
            )
