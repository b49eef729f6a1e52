"""Measure `positron serve` with 1, 8 and 32 streams at the same time: tokens per second and the time to the first token.

The server runs in a process of its own. Each stream sends one request after another, for texts of 200 tokens, until
--seconds are over. Without RUN, the server has an untrained TinyGPT. The table shows, for each number of streams: the number
of finished requests, the number of errors, the tokens per second of all streams together, the median tokens per second of a
single text after its first token, the median and the 95th percentile of the time to the first token, and the memory of the
server after the first tenth of the time and at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from positron.system.children import PipeEnd

TOKENS = 200
PROMPTS = ("Once upon a time", "Tom", "This is a story about a", "The sun was")


@dataclass
class Load:
    """Hold the measurements of `streams` streams that sent requests at the same time."""

    streams: int
    seconds: float = 0.0
    requests: int = 0
    tokens: int = 0
    errors: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # seconds to the first token of each request
    rates: list[float] = field(default_factory=list)  # tokens per second of each text after its first token
    memory: list[int] = field(default_factory=list)  # bytes, once a second


def untrained(**changes: Any) -> Any:
    """Return an untrained model in the form that the server needs: a TinyGPT, or a GPT with the options `changes`."""
    import torch

    from positron.config import GPTConfig
    from positron.inference.sessions import Sessions
    from positron.inference.text_model import Writer
    from positron.model.gpt import GPT
    from positron.serving.models import MAX_WAITING, Served, slots_of
    from positron.serving.worker import Worker
    from positron.text.char_word import CharTokenizer
    from scripts.bench.generate import TINYGPT

    letters = CharTokenizer(
        "".join(map(chr, range(0x4E00, 0x4E00 + TINYGPT.vocab_size - 6))) if not changes else "abcdef "
    )
    config = TINYGPT if not changes else GPTConfig(vocab_size=letters.vocab_size, **changes)
    model = GPT(config, seed=1).eval()
    with torch.no_grad():  # so that a few tokens are likely, as in a trained model, and not all of them equally
        model.wte.weight.mul_(8)
    writer = Writer(model, letters)
    worker = Worker(Sessions(writer.engine(), slots_of(writer)), MAX_WAITING)
    return Served("untrained", False, config.context_length, 0, letters, worker)


def _serve(run: str | None, changes: dict[str, Any], answer: PipeEnd) -> None:
    from positron.run.find import find_run
    from positron.serving.app import create_app
    from positron.serving.connection import Server, listen, url_of
    from positron.serving.models import Models, serve_run

    model = untrained(**changes) if run is None else serve_run(find_run(run))
    listener = listen("127.0.0.1", 0)
    answer.send(url_of(listener))
    Server(create_app(Models([model])), listener).run_until_stopped()


@contextmanager
def server(run: str | None = None, **changes: Any) -> Iterator[tuple[str, int]]:
    """Start a server with the run `run`, or with `untrained(**changes)`; yield its address and its process id."""
    start = multiprocessing.get_context("spawn")
    ours, theirs = start.Pipe()
    process = start.Process(target=_serve, args=(run, changes, theirs), daemon=True)
    process.start()
    try:
        url = ours.recv()
        assert process.pid is not None
        yield url, process.pid
    finally:
        process.terminate()
        process.join()


def memory_of(pid: int) -> int:
    """Return the resident memory of a process in bytes. Raises SystemExit on other systems than Linux."""
    if sys.platform != "linux":
        raise SystemExit("scripts.bench.serve reads the memory of the server from /proc, which only Linux has")
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


async def put_under_load(url: str, pid: int, streams: int, seconds: float, tokens: int = TOKENS) -> Load:
    """Let `streams` streams send requests for `seconds` seconds, for texts of `tokens` tokens; return the measurements."""
    load, begin = Load(streams), time.perf_counter()
    end = begin + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:

        async def stream(number: int) -> None:
            i = 0
            while time.perf_counter() < end:
                body = {"prompt": PROMPTS[(number + i) % len(PROMPTS)], "seed": 1000 * number + i, "max_tokens": tokens}
                i += 1
                try:
                    await _request(client, body, load)
                except Exception as error:
                    load.errors.append(f"{type(error).__name__}: {error}")

        async def watch() -> None:
            while True:
                load.memory.append(memory_of(pid))
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*map(stream, range(streams)))
        watching.cancel()
    load.seconds = time.perf_counter() - begin
    return load


async def _request(client: httpx.AsyncClient, body: dict[str, Any], load: Load) -> None:
    options = {"stream": True, "ignore_eos": True, "stream_options": {"include_usage": True}}
    begin = time.perf_counter()
    first, usage, finish = None, None, None
    async with client.stream("POST", "/v1/completions", json={**body, **options}) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise RuntimeError(chunk["error"]["message"])
            if chunk["choices"]:
                first = first or time.perf_counter()
                finish = chunk["choices"][0]["finish_reason"]
            usage = chunk.get("usage") or usage
    last = time.perf_counter()
    if first is None or usage is None or finish != "length" or usage["completion_tokens"] != body["max_tokens"]:
        raise RuntimeError(f"an answer is not complete: {finish}, {usage}")
    load.requests += 1
    load.tokens += usage["completion_tokens"]
    load.first.append(first - begin)
    load.rates.append((usage["completion_tokens"] - 1) / (last - first))


def row(load: Load) -> str:
    """Return the row of the table for one number of streams."""
    late = statistics.quantiles(load.first, n=20)[-1] if len(load.first) > 1 else load.first[0]
    memory = [size / 2**20 for size in (load.memory[len(load.memory) // 10], load.memory[-1])]
    return (
        f"| {load.streams} | {load.requests} | {len(load.errors)} | {load.tokens / load.seconds:,.0f} | "
        f"{statistics.median(load.rates):,.0f} | {statistics.median(load.first) * 1000:,.0f} | {late * 1000:,.0f} | "
        f"{memory[0]:,.0f} → {memory[1]:,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run; default: an untrained TinyGPT")
    parser.add_argument("--seconds", type=float, default=30.0, help="for each number of streams (default: %(default)s)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32], help="default: 1 8 32")
    options = parser.parse_args()
    print("| streams | requests | errors | tokens/s | of one text | first token, ms | 95 % | memory, MiB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with server(options.run) as (url, pid):
        asyncio.run(put_under_load(url, pid, 1, 1))  # the first request allocates
        for streams in options.streams:
            load = asyncio.run(put_under_load(url, pid, streams, options.seconds))
            print(row(load), flush=True)
            for error in sorted(set(load.errors))[:3]:
                print(f"  {error}")


if __name__ == "__main__":
    main()
