"""Measure how much a request with a long prompt delays the texts that a server is generating.

The model is an untrained TinyGPT with a context of 1,024 tokens, and the worker of the server runs in this process. In each
round, a request with a prompt of 1,000 tokens is sent twice: while the server generates --streams other texts ("in company"),
and while it generates none ("alone"). The table shows medians over the rounds, in milliseconds: the time to the first token of
the request in both cases, and the longest pause between two tokens of another text while the request waits for this token.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import random
import statistics
import threading
import time

import torch

from positron.inference.sampling import Sampling
from positron.inference.sessions import Piece, Request, Sessions
from positron.inference.text_model import Writer
from positron.model.gpt import GPT
from positron.serving.models import MAX_WAITING, slots_of
from positron.serving.worker import Job, Worker
from positron.text.char_word import CharTokenizer
from scripts.bench.generate import TINYGPT

PROMPT = 1000
CONFIG = dataclasses.replace(TINYGPT, context_length=1024)


class Text:
    """Send a request to a worker, and record the times at which its tokens arrive."""

    def __init__(self, worker: Worker, prompt: list[int], max_tokens: int) -> None:
        self.worker, self.arrived = worker, threading.Event()
        self.begin, self.times = time.perf_counter(), list[float]()
        request = Request(prompt, Sampling(), max_tokens, seed=1, stop_ids=frozenset())
        self.job = Job(request, self._deliver)
        worker.submit([self.job])

    def _deliver(self, piece: Piece | Exception) -> None:
        if isinstance(piece, Exception):
            raise piece
        self.times.append(time.perf_counter())
        self.worker.taken(self.job)
        self.arrived.set()

    def wait(self) -> float:
        """Wait for the first token, and return the seconds that it took."""
        self.arrived.wait()
        return self.times[0] - self.begin


def join(worker: Worker, streams: int, chance: random.Random) -> tuple[float, float]:
    """Send a request with a long prompt while `streams` other texts are generated.

    Returns two times in seconds: the longest pause of the other texts, and the time to the first token of the request.
    """
    running = [Text(worker, [i + 1] * 4, CONFIG.context_length - 4) for i in range(streams)]
    while any(len(text.times) < 50 for text in running):
        time.sleep(0.001)
    long = Text(worker, [chance.randrange(CONFIG.vocab_size) for _ in range(PROMPT)], 1)
    first = long.wait()
    while any(text.times[-1] <= long.times[0] for text in running):  # the last pause ends after that token
        time.sleep(0.001)
    pauses = []
    for text in running:
        worker.cancel(text.job)
        last = next(i for i, at in enumerate(text.times) if at > long.times[0])
        now = [at for at in text.times[: last + 1] if at > long.begin]
        before = [at for at in text.times if at <= long.begin][-1]
        pauses += [b - a for a, b in itertools.pairwise([before, *now])]
    while worker.load != (0, 0):
        time.sleep(0.001)
    return max(pauses, default=0.0), first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    parser.add_argument("--streams", type=int, default=4, help="number of running texts (default: %(default)s)")
    options = parser.parse_args()
    model = GPT(CONFIG, seed=1).eval()
    with torch.no_grad():  # so that a few tokens are likely, as in a trained model, and not all of them equally
        model.wte.weight.mul_(8)
    letters = CharTokenizer("".join(map(chr, range(0x4E00, 0x4E00 + CONFIG.vocab_size - 6))))
    writer, chance = Writer(model, letters), random.Random(1)
    worker = Worker(Sessions(writer.engine(), slots_of(writer)), MAX_WAITING)
    join(worker, options.streams, chance)  # the first request allocates
    rounds = [(*join(worker, options.streams, chance), join(worker, 0, chance)[1]) for _ in range(options.rounds)]
    print("| longest pause | first token, in company | first token, alone |")
    print("|---|---|---|")
    print("| " + " | ".join(f"{1000 * statistics.median(times):,.0f}" for times in zip(*rounds, strict=True)) + " |")
    worker.close()


if __name__ == "__main__":
    main()
