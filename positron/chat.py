"""Talk to a run: `python -m positron.chat`, or one question: `python -m positron.chat "Tell me a story about Tom."`

In the chat: settings, settings NAME VALUE, reset, save FILE, load FILE, system TEXT, help, quit; also as /settings and so
on. Ctrl-C stops an answer; at the prompt it leaves.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from positron.config import UserError
from positron.door import errors_as_one_line
from positron.inference.options import chosen_sampling, draft_option, sampling_options

if TYPE_CHECKING:
    from positron.inference.dialogue import Dialogue

HELP = """settings              show how the next words are chosen
settings NAME VALUE   change it: preset, temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, seed
reset                 forget the conversation
system TEXT           say who the model is to be (without TEXT: nobody)
save FILE, load FILE  keep the conversation and go on with it later
quit                  leave (so does Ctrl-D, and Ctrl-C at the prompt; in an answer, Ctrl-C stops the answer)"""


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m positron.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question", nargs="?", help="answer this one and leave")
    parser.add_argument("--run", help="run folder, or name below outputs/ (default: the one trained last)")
    parser.add_argument("--max-tokens", type=int, default=200, help="most tokens of an answer (default %(default)s)")
    parser.add_argument("--system", help="who the model is to be")
    draft_option(parser)
    sampling_options(parser)
    return parser


def main() -> None:
    with errors_as_one_line():
        options = arguments().parse_args()
        if options.max_tokens < 1:
            raise UserError(f"--max-tokens {options.max_tokens} must be at least 1")
        sampling = chosen_sampling(options, default="precise")
        from positron.runs import announce, find_run, load_draft, load_model

        run = find_run(options.run)
        announce(run, options.run, note)
        from positron.inference.dialogue import Dialogue
        from positron.inference.writer import Writer

        model, tokenizer, path = load_model(run, note)
        draft = load_draft(options.draft, tokenizer, note)
        writer = Writer(model, tokenizer, weights=options.weights, draft=draft)
        dialogue = Dialogue(writer, run.is_chat, sampling, options.max_tokens, options.seed)
        if options.system:
            dialogue.system = options.system
        if options.question is not None:
            answer(dialogue, options.question)
        elif not sys.stdin.isatty():
            for line in sys.stdin:
                if line.strip():
                    answer(dialogue, line.strip())
        else:
            kind = "" if run.is_chat else "; it was not fine-tuned on conversations: it goes on with what you begin"
            print(
                f"{run.folder}, {path.name}, {model.config.n_params() / 1e6:.2f}M parameters{kind}. help shows what you can do."
            )
            converse(dialogue)


def note(line: str) -> None:
    print(f"({line})", file=sys.stderr)


def answer(dialogue: Dialogue, question: str) -> None:
    """Print the answer as it comes. A Ctrl-C stops it, and what was said stays."""
    if not dialogue.chats:
        print(question, end="", flush=True)
    pieces = dialogue.ask(question, note)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
        print(" ...", end="")
        if not sys.stdin.isatty():
            print()
            raise
    print(flush=True)


def converse(dialogue: Dialogue) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script in the background leaves Ctrl-C ignored
    for line in lines():
        text = line.strip()
        if not text:
            continue
        try:
            done = command(dialogue, text)
        except UserError as error:
            print(f"({error})")
            continue
        if done == "quit":
            return
        if done is None:
            answer(dialogue, text)
            if dialogue.writer.engine().was_cut:
                note(
                    f"cut after {dialogue.max_tokens} tokens: settings max_tokens {2 * dialogue.max_tokens} allows more"
                )


def lines() -> Iterator[str]:
    """What the user types, with editing and history, until Ctrl-D or Ctrl-C."""
    from prompt_toolkit import PromptSession

    session: PromptSession[str] = PromptSession()
    while True:
        try:
            yield session.prompt("\nyou > ")
        except (EOFError, KeyboardInterrupt):
            return


def command(dialogue: Dialogue, text: str) -> str | None:
    """Do what the line says if it is a command: its name; None for a line that is meant for the model."""
    slashed = text.startswith("/")
    name, _, rest = text.removeprefix("/").partition(" ")
    rest = rest.strip()
    known: dict[str, Callable[[], None]] = {
        "help": lambda: print(HELP),
        "settings": lambda: _settings(dialogue, rest),
        "reset": dialogue.reset,
        "system": lambda: setattr(dialogue, "system", rest or None),
        "save": lambda: _save(dialogue, rest),
        "load": lambda: _load(dialogue, rest),
        "quit": lambda: None,
    }
    takes_text = name in ("settings", "system", "save", "load")
    if (
        name not in known
        or (rest and not takes_text)
        or (name in ("save", "load") and len(rest.split()) != 1 and not slashed)
    ):
        if slashed:
            raise UserError(f"there is no /{name}: help shows what there is")
        return None
    known[name]()
    if name in ("reset", "system"):
        print("(the conversation begins anew)" if name == "reset" else f"(system: {dialogue.system})")
    return name


def _settings(dialogue: Dialogue, rest: str) -> None:
    if rest:
        name, _, value = rest.replace("=", " ", 1).partition(" ")
        dialogue.change(name.strip().replace("-", "_"), value.strip())
    print("\n".join(f"  {name:<18} {value}" for name, value in dialogue.settings().items()))


def _save(dialogue: Dialogue, name: str) -> None:
    from positron.disk import write_json

    if not name:
        raise UserError("save where? save FILE")
    write_json(Path(name).expanduser(), dialogue.state())
    print(f"(saved {len(dialogue.messages)} messages to {name})")


def _load(dialogue: Dialogue, name: str) -> None:
    if not name:
        raise UserError("load what? load FILE")
    try:
        state = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot load {name}: {error}") from error
    dialogue.restore(state, name)
    print(f"(loaded {len(dialogue.messages)} messages from {name})")


if __name__ == "__main__":
    main()
