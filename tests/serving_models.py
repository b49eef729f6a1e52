"""A server in this process, over models that nobody trained."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from positron.config import GPTConfig
from positron.dashboard.site import site
from positron.dashboard.table import Outputs
from positron.inference.engine import Engine
from positron.inference.sessions import Sessions
from positron.model.gpt import GPT
from positron.serving.connection import Server, listen, url_of
from positron.serving.models import Models, Served
from positron.serving.worker import Worker
from positron.text.char_word import CharTokenizer

CONTEXT = 96
TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvwxyz ,.é😀\n")


def engine_of(seed: int = 1) -> Engine:
    """A model that writes varied text."""
    config = GPTConfig(
        vocab_size=TOKENIZER.vocab_size,
        context_length=CONTEXT,
        d_model=32,
        n_layer=2,
        n_head=4,
        position="rope",
        tie_embeddings=False,
    )
    model = GPT(config, seed=seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return Engine(model, TOKENIZER)


DECODER = type(engine_of().decoder)  # compiled where Numba is installed


def served_of(name: str, chats: bool, slots: int = 4, max_waiting: int = 16) -> Served:
    engine = engine_of()
    return Served(name, chats, CONTEXT, 1, TOKENIZER, Worker(Sessions(engine, slots), max_waiting))


class Running:
    """A server that runs, with its models, and those of a folder of runs."""

    def __init__(self, *models: Served, key: str | None = None, folder: Path | None = None) -> None:
        outputs = Outputs(folder or Path("nothing"))
        self.models = Models(models, dict if folder is None else outputs.trained)
        listener = listen("127.0.0.1", 0)
        self.url = url_of(listener)
        self.port: int = listener.getsockname()[1]
        self.server = Server(site(self.models, outputs, key), listener)
        self.thread = threading.Thread(target=self.server.run_until_stopped)
        self.thread.start()

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()
        self.models.close()
