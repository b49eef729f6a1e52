"""Measure how long it takes to prepare data, to open token files, and to read batches.

    python -m scripts.bench.data [TEXT]

Preparation is compared with the tokenizer library alone, and both are measured in turns. TEXT (default: 80 MB of the built-in
stories) is a file whose documents are separated by lines `<|endoftext|>`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from positron.config import DataConfig, TokenizerConfig
from positron.data.open import open_source
from positron.data.shards import TokenFiles, write_tokens
from positron.system.disk import write_json
from positron.system.errors import UserError
from positron.system.memory import peak_memory
from positron.text.factory import load_tokenizer, train_tokenizer

ROUNDS = 3
_encode: Callable[[list[str]], Any]


def _bare(kind: str, folder: str) -> None:
    """Load the tokenizer library's own encoder, without Positron's code around it, in a worker process."""
    global _encode
    if kind == "sentencepiece":
        import sentencepiece

        _encode = sentencepiece.SentencePieceProcessor(model_file=f"{folder}/spm.model").encode
    else:
        tokenizer: Any = load_tokenizer(Path(folder))
        _encode = partial(tokenizer._encoding.encode_ordinary_batch, num_threads=1)


def _encode_texts(texts: list[str]) -> int:
    return sum(map(len, _encode(texts)))


def tokenizing(text: Path, choice: TokenizerConfig, root: Path) -> None:
    """Measure `write_tokens`, and the library's encoder alone with the same texts and number of processes; print both."""
    source = open_source(DataConfig("text", str(text)))
    home = root / f"{choice.kind}-{choice.name}"
    home.mkdir()
    batches = [[d.text for d in source.read(task)] for task in source.tasks()]
    tokenizer = train_tokenizer(choice, (t for batch in batches[:4] for t in batch))
    tokenizer.save(home)
    ours, bare = [], []
    workers = os.cpu_count() or 1
    for _ in range(ROUNDS):
        with ProcessPoolExecutor(workers, initializer=_bare, initargs=(choice.kind, str(home))) as pool:
            list(pool.map(_encode_texts, [["warm"]] * workers))
            began = time.perf_counter()
            list(pool.map(_encode_texts, batches))
            bare.append(time.perf_counter() - began)
        began = time.perf_counter()
        write_tokens(source, tokenizer, home, root / "tokens")
        ours.append(time.perf_counter() - began)
        shutil.rmtree(root / "tokens")
    mb = text.stat().st_size / 1e6
    a, b = float(np.median(ours)), float(np.median(bare))
    name = choice.name or choice.kind
    print(f"{name:<16} prepare {mb / a:6.1f} MB/s, bare encode loop {mb / b:6.1f} MB/s: {b / a:.0%} of it", flush=True)


def serving(root: Path) -> None:
    """Measure, in a separate process, how long it takes to open 10 GB of token files and to read the batch of a step."""
    folder = root / "large"
    folder.mkdir()
    n, per_shard = 5_000_000_000, 500_000_000
    facts: dict[str, Any] = {"tokens": n, "documents": 1, "bytes": 4 * n, "bits": None, "shards": []}
    for i in range(n // per_shard):
        with (folder / f"train-{i:05d}.bin").open("wb") as file:
            file.truncate(2 * per_shard)  # a sparse file, which occupies no space on the disk
        facts["shards"].append({"file": f"train-{i:05d}.bin", "tokens": per_shard, "sha256": ""})
    tokenizer = train_tokenizer(TokenizerConfig("char"), ["abc"])
    tokenizer.save(folder)
    write_json(
        folder / "tokens.json",
        {"tokenizer_hash": tokenizer.hash, "dtype": "uint16", "fingerprint": "", "splits": {"train": facts}},
    )
    out = subprocess.run(
        [sys.executable, __file__, "--serve", str(folder)], capture_output=True, encoding="utf-8", check=True
    )
    print(out.stdout.strip())


def serve(folder: Path) -> None:
    from positron.data.windows import Windows

    tokenizer = load_tokenizer(folder)
    before = peak_memory() or 0
    began = time.perf_counter()
    files = TokenFiles(folder, "train", tokenizer)
    opened = time.perf_counter()
    batch = Windows(files, window=512, batch_size=32, seed=0).batch(1_000_000)
    served = time.perf_counter()
    memory = ((peak_memory() or 0) - before) / 1e6
    print(
        f"10 GB of tokens  opened in {1e3 * (opened - began):.1f} ms, batch of step 1,000,000 ({tuple(batch.shape)}) read "
        f"in {1e3 * (served - opened):.1f} ms, {memory:.0f} MB of memory"
    )


def share_of_a_step(root: Path) -> None:
    """Measure the time to read a batch, and the time of a training step of `model=nano`; print both and their ratio."""
    import torch

    from positron.config import GPTConfig
    from positron.data.corpus import prepare
    from positron.data.windows import Windows
    from positron.model.gpt import GPT

    data = DataConfig("stories", size_mb=2, dir=str(root / "data"))
    tokenizer, folder = prepare(data, TokenizerConfig("sentencepiece", 2000), None)
    config = GPTConfig(vocab_size=16_000, context_length=256, d_model=384, n_layer=6, n_head=6)
    windows = Windows(
        TokenFiles(folder, "train", tokenizer),
        window=256,
        batch_size=16,
        seed=0,
        end_id=tokenizer.special_id("<|endoftext|>"),
    )
    model = GPT(config)
    costs: dict[str, list[float]] = {"batch": [], "step": []}
    for step in range(1, 8):
        began = time.perf_counter()
        rows = windows.batch(step)
        costs["batch"].append(time.perf_counter() - began)
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()).backward()
        costs["step"].append(time.perf_counter() - began)
    batch_s, step_s = (float(np.median(costs[name][1:])) for name in ("batch", "step"))
    print(
        f"nano, 16 x 256   a batch takes {1e3 * batch_s:.2f} ms, a step {1e3 * step_s:.0f} ms: {batch_s / step_s:.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        text = options.text
        if text is None:
            from positron import stories

            text = root / "stories.txt"
            quarter = "\n<|endoftext|>\n".join(s.text for s in stories.documents(0, 0, 24_000))
            text.write_text("\n<|endoftext|>\n".join([quarter] * 4), encoding="utf-8", newline="\n")
        for choice in (TokenizerConfig("sentencepiece", 16_000), TokenizerConfig("tiktoken", name="cl100k_base")):
            try:
                tokenizing(text, choice, root)
            except UserError as error:
                print(f"{choice.name} is left out: {error}")
        serving(root)
        share_of_a_step(root)


if __name__ == "__main__":
    main()
