"""Generate text with a run.

positron generate "Once upon a time" --run outputs/quickstart
positron generate "Once upon a time" --compare
positron generate "Once upon a time" --run seed-0,seed-1,seed-2

--compare continues the prompt with each preset of the sampling settings. --run with several runs uses them as one model.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.cli.sampling_options import chosen_sampling, draft_option, given_options, run_option, sampling_options
from positron.inference.arguments import argument, decoded, read_standard_input, seed_of, stops_of, whole_number
from positron.system.command_parser import CommandParser
from positron.system.console import Screen, printable, say_loading
from positron.system.errors import UserError, why_unreadable
from positron.system.exits import errors_as_one_line
from positron.system.formatting import side_by_side
from positron.system.log import screen_log
from positron.system.threads import SPIN_WRITING, spin

if TYPE_CHECKING:
    from positron.inference.sampling import Sampling
    from positron.inference.text_model import Writer

logger = logging.getLogger("positron.generate")  # under `python -m` the module is called __main__

FIRST_WORDS = "Once upon a time"  # the prompt if the user gives none
USED_BY_COMPARE = {"prompt", "file", "run", "compare", "max_tokens", "seed", "weights", "draft", "verbose"}


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("generate", __doc__)
    parser.add_argument("prompt", nargs="?", help="beginning of the text; - reads standard input")
    parser.add_argument("--file", help="read the prompt from this file")
    run_option(parser)
    parser.add_argument(
        "--max-tokens", type=int, default=300, help="maximum number of tokens to generate (default: %(default)s)"
    )
    parser.add_argument(
        "--num-samples", type=int, default=1, help="number of texts to generate; text i uses seed + i (default: 1)"
    )
    parser.add_argument("--compare", action="store_true", help="continue the prompt with each preset, side by side")
    parser.add_argument("--stop", action="append", default=[], help="stop before this text; may be given several times")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object per text, with its number of tokens and the speed"
    )
    parser.add_argument("--verbose", action="store_true", help="say when the context is full")
    draft_option(parser)
    sampling_options(parser)
    return parser


def read_prompt(options: argparse.Namespace) -> str:
    """Return the prompt from the argument, from the file of --file, or from standard input.

    Standard input is read if the argument is `-`. It is also read if neither the argument nor --file is given, and standard
    input is not a terminal. If none of these gives a prompt, or standard input is empty, return "Once upon a time".

    Raises UserError if the prompt cannot be read, if both the argument and --file are given, or if the user asks for a prompt
    from a file or from standard input (`-`), and it is empty.
    """
    if options.file is not None:
        if options.prompt is not None:
            raise UserError("a prompt and --file were both given: give one of them")
        try:
            prompt = decoded(Path(options.file).read_bytes(), f"--file {options.file}").rstrip("\n")
        except (OSError, ValueError) as error:
            reason = why_unreadable(error) if isinstance(error, OSError) else error
            raise UserError(f"cannot read --file {options.file}: {reason}") from error
        return _not_empty(prompt, f"--file {options.file}")
    if options.prompt == "-":
        return _not_empty(read_standard_input("the prompt").rstrip("\n"), "standard input")
    if options.prompt is None and not sys.stdin.isatty():  # it may be empty, as in a program without a terminal
        return read_standard_input("the prompt").rstrip("\n") or FIRST_WORDS
    return FIRST_WORDS if options.prompt is None else argument(options.prompt, "the prompt")


def _not_empty(prompt: str, source: str) -> str:
    if not prompt:
        raise UserError(f"{source} is empty: give a text there, or give the prompt as an argument")
    return prompt


def refuse_unused_by_compare() -> None:
    """Raise UserError for options that --compare does not use, instead of ignoring them."""
    unused = sorted(given_options(arguments) - USED_BY_COMPARE)
    if unused:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise UserError(f"--compare does not use {names}: leave {names if len(unused) == 1 else 'them'} out")


def main() -> None:
    """Run `positron generate` with the options in `sys.argv`."""
    spin(SPIN_WRITING)
    with errors_as_one_line():
        options = arguments().parse_args()
        with screen_log(level=logging.DEBUG if options.verbose else logging.INFO):
            continue_prompt(options)


def continue_prompt(options: argparse.Namespace) -> None:
    """Load the run and print the text that its model generates after the prompt."""
    say_loading(options.run or "PyTorch")
    if options.compare:
        refuse_unused_by_compare()
    for name in ("max_tokens", "num_samples"):
        whole_number(f"--{name.replace('_', '-')}", getattr(options, name), minimum=1)
    sampling, stop = chosen_sampling(options), stops_of(options.stop)
    seed_of(options.seed, options.num_samples)
    if options.draft is not None and options.num_samples > 1:
        raise UserError(
            f"--draft works only with one text, but --num-samples is {options.num_samples}: leave out one of these two options"
        )
    prompt = read_prompt(options)
    from positron.run.ensemble import find_runs, load_models
    from positron.run.find import announce
    from positron.run.load import load_draft

    runs = find_runs(options.run)
    announce(runs[0], options.run, prompt)
    model, tokenizer, paths = load_models(runs)
    from positron.inference.text_model import Writer

    for run, path in zip(runs, paths, strict=True):
        logger.info(f"{run.folder}, {path.name}")
    draft = load_draft(options.draft, tokenizer)
    writer = Writer(model, tokenizer, options.weights, draft)
    if options.compare:
        compare(writer, prompt, options)
    elif options.num_samples == 1 and not options.json:
        write(writer, prompt, sampling, stop, options)
    else:
        write_several(writer, prompt, sampling, stop, options)


def write(writer: Writer, prompt: str, sampling: Sampling, stop: tuple[str, ...], options: argparse.Namespace) -> None:
    """Print the prompt and its continuation by the model; each piece of the continuation is printed when it is generated.

    The continuation ends before the first occurrence of one of the texts `stop`.
    """
    pieces = writer.engine().stream(
        writer.ids(prompt), sampling, max_tokens=options.max_tokens, seed=options.seed, stop=stop
    )
    screen = Screen()
    screen.write(prompt)
    for piece in pieces:
        screen.write(piece)
    screen.line()


def write_several(
    writer: Writer, prompt: str, sampling: Sampling, stop: tuple[str, ...], options: argparse.Namespace
) -> None:
    """Generate `--num-samples` texts at once and print them, with --json as one JSON object per text.

    Each text ends before the first occurrence of one of the texts `stop`.
    """
    began = time.perf_counter()
    ids = writer.ids(prompt)
    written = writer.engine().written(
        [ids] * options.num_samples, sampling, max_tokens=options.max_tokens, seed=options.seed, stop=stop
    )
    took = time.perf_counter() - began
    speed = round(sum(sample.tokens for sample in written) / took, 1)
    for i, sample in enumerate(written):
        if options.json:
            facts = {"prompt": prompt, "text": sample.text, "seed": options.seed + i, "tokens": sample.tokens}
            facts |= {"ended": sample.ended, "tokens_per_second_of_all": speed}
            print(printable_json(facts))
        else:
            screen = Screen()
            screen.line(f"--- seed {options.seed + i} ---\n{prompt}{sample.text}\n")


def printable_json(facts: dict[str, Any]) -> str:
    """Return JSON in which characters that control a terminal are escaped; decoding it gives the exact text."""
    text = json.dumps(facts, ensure_ascii=False)
    return "".join(c if printable(c) == c else json.dumps(c)[1:-1] for c in text)


def compare(writer: Writer, prompt: str, options: argparse.Namespace) -> None:
    """Continue the prompt with each preset of sampling settings, and print the texts in columns that fit the terminal."""
    import shutil

    from positron.inference.sampling import PRESETS

    columns, ids = [], writer.ids(prompt)
    for name, sampling in PRESETS.items():
        (text,) = writer.engine().texts([ids], sampling, max_tokens=options.max_tokens, seed=options.seed)
        columns.append((name, printable(prompt + text)))
    print(side_by_side(columns, shutil.get_terminal_size().columns))


if __name__ == "__main__":
    main()
