"""Measure how fast a run generates text: time to the first token, and tokens per second with and without the key/value cache.

positron bench --run quickstart
positron bench --run quickstart --weights int8
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from positron.cli.sampling_options import draft_option, weights_option
from positron.inference.arguments import weights_of
from positron.system.command_parser import CommandParser
from positron.system.console import say_loading
from positron.system.exits import errors_as_one_line
from positron.system.formatting import counted, parameter_count
from positron.system.log import screen_log
from positron.system.threads import SPIN_WRITING, spin

if TYPE_CHECKING:
    from positron.inference.engine import Engine
    from positron.model.gpt import GPT

logger = logging.getLogger("positron.bench")  # under `python -m` the module is called __main__


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("bench", __doc__)
    parser.add_argument("--run", help="run folder, or name below outputs/ (default: the one trained last)")
    weights_option(parser)
    draft_option(parser)
    return parser


def main() -> None:
    """Run `positron bench` with the options in `sys.argv`."""
    spin(SPIN_WRITING)
    with errors_as_one_line(), screen_log():
        options = arguments().parse_args()
        say_loading(options.run or "PyTorch")
        weights_of(options.weights, "--weights ")
        from positron.run.find import announce, find_run
        from positron.run.load import load_draft, load_model

        run = find_run(options.run)
        announce(run, options.run)
        model, tokenizer, path = load_model(run)
        from positron.inference.text_model import Writer

        logger.info(f"{run.folder}, {path.name}")
        draft = load_draft(options.draft, tokenizer)
        measure(model, Writer(model, tokenizer, options.weights, draft).engine())


def measure(model: GPT, engine: Engine) -> None:
    """Print the time to the first token and the tokens per second with and without the key/value cache, by prompt length.

    `engine` generates text with `model` and the cache. The time is in milliseconds.
    """
    import torch

    from positron.inference.sampling import Sampling

    def median(seconds: Callable[[], list[float]]) -> list[float]:
        """Call `seconds` four times, ignore the first list, and return the median of each entry over the other three lists."""
        seconds()
        return [statistics.median(values) for values in zip(*(seconds() for _ in range(3)), strict=True)]

    context = model.config.context_length
    print(
        f"{parameter_count(model.config.n_params())}, context {context}, {counted(torch.get_num_threads(), 'thread')}"
    )
    print("prompt tokens   first token   tokens/s   tokens/s without cache")
    lengths = sorted({1, context // 8, context // 2, context - 17} - {0})
    greedy = Sampling(temperature=0)
    for length in [n for n in lengths if 0 < n <= context - 17] or [1]:
        ids = [1 + i % (model.config.vocab_size - 1) for i in range(length)]

        def with_cache(ids: list[int] = ids) -> list[float]:
            began = time.perf_counter()
            first, *_, last = [
                time.perf_counter() for _ in engine.ids([ids], greedy, max_tokens=17, stop_ids=(), seed=0)
            ]
            return [first - began, last - first]

        def without_cache(ids: list[int] = ids) -> list[float]:
            began, seen = time.perf_counter(), list(ids)
            with torch.inference_mode():
                for _ in range(4):
                    hidden = model.hidden(torch.tensor([seen], device=model.wte.weight.device))[:, -1]
                    seen.append(int(model.logits(hidden).argmax()))
            return [time.perf_counter() - began]

        (first, rest), (uncached,) = median(with_cache), median(without_cache)
        print(f"{length:>13}   {1000 * first:>8.1f} ms   {16 / rest:>8,.0f}   {4 / uncached:>22,.0f}")


if __name__ == "__main__":
    main()
