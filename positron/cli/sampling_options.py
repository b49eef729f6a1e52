"""Define the command-line options with which the user chooses a run and how its model samples.

The module imports no large library, so that `--help` is immediate.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from positron.inference.arguments import weights_of
from positron.system.errors import UserError

if TYPE_CHECKING:
    from positron.inference.sampling import Sampling


def run_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the run, or several runs that are used as one model."""
    parser.add_argument(
        "--run",
        help="run folder, or name below outputs/ (default: the run trained last); A,B,C: use several runs as one model, an "
        "ensemble, whose probability of each token is the mean of the runs' probabilities",
    )


def sampling_options(parser: argparse.ArgumentParser, preset: str = "balanced") -> None:
    """Add the sampling options; `preset` is the default of --preset."""
    parser.add_argument(
        "--preset",
        help=f"precise, balanced or creative (default: {preset}); "
        "the options from --temperature down to --last-n override single values of the preset",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        help="randomness with which each token is chosen; 0: always the most likely token (default: set by the preset)",
    )
    parser.add_argument("--top-k", type=int, help="sample only from the k most likely tokens")
    parser.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="sample only from the most likely tokens whose probabilities add up to P",
    )
    parser.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="sample only from tokens whose probability is at least P times that of the most likely token (P from 0 to 1)",
    )
    parser.add_argument("--repetition-penalty", type=float, help="above 1: make recently used tokens less likely")
    parser.add_argument(
        "--last-n", type=int, help="number of recent tokens that the repetition penalty considers (default: 64)"
    )
    weights_option(parser)
    parser.add_argument("--seed", type=int, default=0, help="random seed (default: %(default)s)")


def weights_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses the precision of the weights."""
    parser.add_argument(
        "--weights",
        default="fp32",
        help="weight precision: fp32 (default), bf16 or int8; lower precision is faster on a CPU and may change some tokens",
    )


def given_options(build: Callable[[], argparse.ArgumentParser]) -> set[str]:
    """Return the names of the options that the user typed, such as "max_tokens".

    An option that was typed with its default value is included. `build` creates the parser of the command's options, with which
    this function parses `sys.argv`.
    """
    parser = build()
    parser.set_defaults(**dict.fromkeys(vars(build().parse_args([]))))  # None: not given
    return {name for name, value in vars(parser.parse_args()).items() if value is not None}


def draft_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the draft model of speculative decoding."""
    parser.add_argument(
        "--draft",
        metavar="RUN",
        help="a smaller run with the same tokenizer, which proposes tokens that the model of --run checks (speculative "
        "decoding): faster, and texts have the same probabilities as without --draft",
    )


def chosen_sampling(options: argparse.Namespace, default: str = "balanced") -> Sampling:
    """Return the sampling settings that the user chose: the values of a preset, replaced by the options that are given.

    If --preset is not given, the preset is `default`. Raises UserError if a value is out of range, if --weights has an unknown
    value, or if --last-n is given but the repetition penalty is 1, so that --last-n has no effect.
    """
    from positron.inference.sampling import preset

    weights_of(options.weights, "--weights ")
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "last_n")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    chosen = preset(options.preset or default)
    try:
        sampling = dataclasses.replace(chosen, **given)
    except UserError as error:
        name, _, complaint = str(error).partition(" ")
        raise UserError(f"--{name.replace('_', '-')} {complaint}") from error
    if "last_n" in given and sampling.repetition_penalty == 1:
        raise UserError(
            "--last-n has no effect with a repetition penalty of 1: give another --repetition-penalty, such as 1.1, or leave "
            "--last-n out"
        )
    return sampling
