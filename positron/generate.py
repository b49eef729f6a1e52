"""Let a run write: `python -m positron.generate "Once upon a time" --run outputs/quickstart`."""

from __future__ import annotations

import argparse
import sys

from positron.config import UserError
from positron.door import errors_as_one_line
from positron.runs import find_run, load_model


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m positron.generate", description=__doc__)
    parser.add_argument(
        "prompt", nargs="?", default="Once upon a time", help="what the text begins with; - reads stdin"
    )
    parser.add_argument("--run", help="run folder, or name below outputs/ (default: the one trained last)")
    parser.add_argument("--max-tokens", type=int, default=300, help="most tokens to write (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest (default %(default)s)")
    parser.add_argument("--top-k", type=int, help="choose among the k likeliest tokens only")
    parser.add_argument("--top-p", type=float, default=0.95, help="... among the likeliest that reach this probability")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another text (default %(default)s)")
    return parser


def check(options: argparse.Namespace) -> None:
    if options.temperature < 0:
        raise UserError(f"--temperature {options.temperature} must not be negative")
    if not 0 < options.top_p <= 1:
        raise UserError(f"--top-p {options.top_p} must be above 0 and at most 1")
    if options.top_k is not None and options.top_k < 1:
        raise UserError(f"--top-k {options.top_k} must be at least 1")
    if options.max_tokens < 1:
        raise UserError(f"--max-tokens {options.max_tokens} must be at least 1")


def main() -> None:
    with errors_as_one_line():
        options = arguments().parse_args()
        check(options)
        prompt = sys.stdin.read().rstrip("\n") if options.prompt == "-" else options.prompt
        run = find_run(options.run)

        def say(line: str) -> None:
            print(line, file=sys.stderr)

        model, tokenizer, path = load_model(run, say)
        from positron.inference.engine import complete

        say(f"{run.folder}, {path.name}")
        text = complete(
            model,
            tokenizer,
            prompt,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            seed=options.seed,
        )
        print(text)


if __name__ == "__main__":
    main()
