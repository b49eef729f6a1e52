"""Measure the tokens per second of the plain decoder, the compiled decoder, and run.c and runq.c of llama2.c.

All of them have the same weights and generate at temperature 0. First, their token ids are compared with those of the plain
decoder in fp32. Then every round runs each variant once for a short time. The table shows the median over the rounds, because
the speed of a machine drifts. The speed also depends on where in the memory the weights are (in a virtual machine by a factor
of up to 1.6), so the weights are copied to new addresses several times. To measure run.c and runq.c, compile them as their
documentation says, and give the folder of the programs:

    gcc -Ofast -fopenmp -march=native run.c -lm -o run; gcc -Ofast -fopenmp -march=native runq.c -lm -o runq
    python -m scripts.bench.decoding --llama2c FOLDER
    python -m scripts.bench.decoding --shape quickstart --batches 1 4 8 --busy 2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from positron.system.threads import SPIN_WRITING, spin

spin(SPIN_WRITING)  # before torch is loaded

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from positron.config import GPTConfig  # noqa: E402
from positron.inference.compiled import CompiledDecoder  # noqa: E402
from positron.inference.decoder import Decoder  # noqa: E402
from positron.inference.engine import Engine  # noqa: E402
from positron.inference.sampling import Sampling  # noqa: E402
from positron.interop.llama2c import BEGIN, HEADER, rules, vocabulary_file  # noqa: E402
from positron.interop.rules import to_theirs  # noqa: E402
from positron.model.gpt import GPT, rope_tables  # noqa: E402
from positron.text.char_word import CharTokenizer  # noqa: E402
from positron.text.sentencepiece_bpe import Piece  # noqa: E402
from scripts.bench.contention import competitors  # noqa: E402
from scripts.bench.shapes import QUICKSTART  # noqa: E402

SHAPES = {
    "stories15M": GPTConfig(
        context_length=256,
        d_model=288,
        n_layer=6,
        n_head=6,
        d_ff=768,
        vocab_size=32_000,
        norm="rmsnorm",
        position="rope",
        activation="swiglu",
    ),
    "quickstart": QUICKSTART,
    "tinygpt": GPTConfig(context_length=512, d_model=320, n_layer=8, n_head=8, vocab_size=16_000),
}
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "int8": torch.int8}
GREEDY = Sampling(temperature=0)
GROUP = 32  # weights of a scale in runq.c


def fresh_model(config: GPTConfig) -> GPT:
    """Return a model with random weights that does not repeat a single token at temperature 0."""
    model = GPT(config, seed=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return model


def write_llama2c(model: GPT, folder: Path) -> None:
    """Write the weights for run.c, the weights for runq.c in int8, and a vocabulary in which the text of each token is its id.

    In int8, every GROUP weights share a scale.
    """
    config = model.config
    tensors = to_theirs(rules(config), model.state_dict())
    header = (config.d_model, config.ff_width, config.n_layer, config.n_head, config.kv_heads, config.vocab_size)
    tables = rope_tables(config.context_length, config.d_head)
    plain = b"".join(part.float().contiguous().numpy().tobytes() for part in (*tensors.values(), *tables))
    (folder / "model.bin").write_bytes(HEADER.pack(*header, config.context_length) + plain)

    def quantised(weight: Tensor) -> bytes:
        groups = weight.float().reshape(-1, GROUP)
        scale = groups.abs().amax(dim=1) / 127
        return (groups / scale[:, None]).round().to(torch.int8).numpy().tobytes() + scale.numpy().tobytes()

    begin = struct.pack("<4si7iBi", b"24ka", 2, *header, config.context_length, 1, GROUP).ljust(256, b"\0")
    norms = [v for name, v in tensors.items() if name.startswith("norm")]
    kinds = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.gate", "mlp.down", "mlp.up")
    matrices = [tensors["wte"], *(tensors[f"{kind}.{i}"] for kind in kinds for i in range(config.n_layer))]
    content = begin + b"".join(v.float().numpy().tobytes() for v in norms) + b"".join(map(quantised, matrices))
    (folder / "model_q.bin").write_bytes(content)
    pieces = [Piece(f" {i}", 0.0, "normal") for i in range(config.vocab_size)]
    (folder / "tokenizer.bin").write_bytes(vocabulary_file(pieces))


def with_llama2c(program: Path, model: Path, tokens: int) -> tuple[float, list[int]]:
    """Return the tokens per second that the program reports, and the token ids that it prints."""
    command = [str(program), str(model), "-t", "0", "-n", str(tokens + 1), "-z", str(model.parent / "tokenizer.bin")]
    process = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    return float(process.stderr.split()[-1]), [int(word) for word in process.stdout.split()]


def with_engine(engine: Engine, batch: int, tokens: int) -> tuple[float, list[int]]:
    """Return the tokens per second of all rows after the first token, as run.c measures, and the ids of the first row."""
    ids: list[int] = []
    start = 0.0
    for row in engine.ids([[BEGIN]] * batch, GREEDY, max_tokens=tokens + 1, stop_ids=(), seed=0):
        ids.append(row[0] or 0)
        start = start or time.perf_counter()
    return batch * (len(ids) - 1) / (time.perf_counter() - start), ids


def engine_of(model: GPT, kind: type[Decoder], dtype: torch.dtype | None) -> Engine:
    engine = Engine(model, CharTokenizer(""), dtype=dtype)
    engine.decoder = kind(model, 0, dtype)
    return engine


def make_variants(
    options: argparse.Namespace, model: GPT, folder: Path
) -> dict[str, Callable[[], tuple[float, list[int]]]]:
    """Copy the weights for each variant; return, by name, functions that run a variant once.

    Each function returns the tokens per second and the generated ids.
    """
    variants: dict[str, Callable[[], tuple[float, list[int]]]] = {}
    if options.llama2c and options.shape == "stories15M":
        write_llama2c(model, folder)
        for program, file in (("run", "model.bin"), ("runq", "model_q.bin")):
            variants[f"{program}.c"] = partial(with_llama2c, options.llama2c / program, folder / file, options.tokens)
    for weights in options.weights:
        for name, kind in (("plain", Decoder), ("compiled", CompiledDecoder)):
            engine = engine_of(model, kind, DTYPES[weights])
            for batch in options.batches:
                variants[f"{weights} {name}, {batch}"] = partial(with_engine, engine, batch, options.tokens)
    return variants


def compare_ids(
    model: GPT, variants: dict[str, Callable[[], tuple[float, list[int]]]], tokens: int, silent: bool
) -> None:
    """Run each variant once, which warms it up; print how many of its ids equal those of the plain decoder in fp32.

    `silent`: print nothing.
    """
    expected_ids = with_engine(engine_of(model, Decoder, None), 1, tokens)[1]
    for name, measure in variants.items():
        ids = measure()[1]
        same = sum(a == b for a, b in zip(expected_ids, ids, strict=False))
        if not silent:
            print(f"{name:<24} ids like those of plain fp32: {same} of {len(expected_ids)}, {len(set(ids))} different")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="stories15M")
    parser.add_argument("--llama2c", type=Path, help="folder of the programs run and runq (shape stories15M)")
    parser.add_argument("--weights", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="for each placement (default %(default)s)")
    parser.add_argument(
        "--placements", type=int, default=6, help="copies of all weights, one after the other (default %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=150, help="begin no further placement after this time")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two measurements")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--busy", type=int, default=0, help="programs that keep a core busy each")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of run.c
    model = fresh_model(SHAPES[options.shape])
    rates: dict[str, list[float]] = {}
    start = time.monotonic()
    with competitors(options.busy):
        for placement in range(options.placements):
            with tempfile.TemporaryDirectory() as folder:
                variants = make_variants(options, model, Path(folder))
                compare_ids(model, variants, options.tokens, silent=placement > 0)
                for _ in range(options.rounds):
                    for name, measure in variants.items():
                        rates.setdefault(name, []).append(measure()[0])
                        time.sleep(options.pause)
            if time.monotonic() - start > options.seconds:
                break
    if options.json:
        options.json.write_text(json.dumps(rates), encoding="utf-8", newline="\n")
    print(
        f"{options.shape}, {options.threads} threads, {options.busy} busy programs, {len(next(iter(rates.values())))} rounds"
    )
    for name, values in rates.items():
        print(f"{name:<24}{statistics.median(values):>8.0f} tokens/s ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    main()
