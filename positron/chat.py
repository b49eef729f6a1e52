"""Talk to a run.

    positron chat
    positron chat "Tell me a story about Tom."

In the chat: /settings, /settings NAME VALUE, /reset, /save FILE, /load FILE, /system TEXT, /help, /quit. Ctrl-C stops an
answer. At the prompt, Ctrl-C clears the line. On an empty line, Ctrl-C ends the chat; if the conversation is not saved, press
Ctrl-C twice.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from positron.cli.chat_commands import NAMES, NearCommand, execute, parse, remark
from positron.cli.sampling_options import chosen_sampling, draft_option, run_option, sampling_options
from positron.inference.arguments import argument, seed_of, standard_input_lines
from positron.system.command_parser import CommandParser
from positron.system.console import Screen, say_loading
from positron.system.errors import UserError
from positron.system.exits import describe, errors_as_one_line
from positron.system.formatting import parameter_count
from positron.system.log import screen_log
from positron.system.threads import SPIN_WRITING, spin

if TYPE_CHECKING:
    from positron.inference.dialogue import Dialogue

PRESET = "precise"
STOP_GRACE_SECONDS = 1.0  # a Ctrl-C this soon after an answer was intended to stop the answer


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("chat", __doc__)
    parser.add_argument("question", nargs="?", help="answer this question and exit")
    run_option(parser)
    parser.add_argument(
        "--max-tokens", type=int, help="maximum tokens of an answer (default: until it ends or the context is full)"
    )
    parser.add_argument("--system", help="system prompt")
    draft_option(parser)
    sampling_options(parser, PRESET)
    return parser


def main() -> None:
    """Run `positron chat` with the options in `sys.argv`."""
    spin(SPIN_WRITING)
    with errors_as_one_line(), screen_log(note):
        options = arguments().parse_args()
        say_loading(options.run or "PyTorch")
        if options.max_tokens is not None and options.max_tokens < 1:
            raise UserError(f"--max-tokens must be at least 1, not {options.max_tokens}")
        question = None if options.question is None else argument(options.question, "the question")
        if question is not None and not question.strip():
            raise UserError("the question is empty: give a text")
        system = argument(options.system, "--system") if options.system else None
        sampling, seed = chosen_sampling(options, PRESET), seed_of(options.seed)
        from positron.run.ensemble import all_chat, find_runs, load_models
        from positron.run.find import announce
        from positron.run.load import load_draft

        runs = find_runs(options.run)
        announce(runs[0], options.run, question)
        chats = all_chat(runs)
        from positron.inference.dialogue import Dialogue
        from positron.inference.text_model import Writer
        from positron.model.ensemble import members_of

        model, tokenizer, paths = load_models(runs)
        draft = load_draft(options.draft, tokenizer)
        writer = Writer(model, tokenizer, weights=options.weights, draft=draft)
        dialogue = Dialogue(writer, chats, sampling, options.max_tokens, seed)
        if system:
            dialogue.system = system
        if question is not None:
            answer(dialogue, question)
        elif not sys.stdin.isatty():
            answer_lines(dialogue)
        else:
            loaded = "; ".join(f"{run.folder}, {path.name}" for run, path in zip(runs, paths, strict=True))
            parameters = parameter_count(sum(member.config.n_params() for member in members_of(model)))
            kind = "" if chats else "; this model was not fine-tuned on conversations: it continues what you begin"
            Screen().line(f"{loaded}, {parameters}{kind}. /help shows what you can do.")
            converse(dialogue, terminal_prompt())


def note(line: str) -> None:
    """Print a remark in parentheses on stderr."""
    Screen(sys.stderr).line(f"({line})")


def answer(dialogue: Dialogue, question: str) -> None:
    """Print the model's answer to `question` while it is generated.

    If the model was not fine-tuned on conversations, `question` is the beginning of a text and is printed before its
    continuation. Ctrl-C ends the answer; the text printed until then stays in the conversation. If standard input is not a
    terminal, Ctrl-C also raises KeyboardInterrupt.
    """
    screen, has_begun = Screen(), dialogue.chats  # a text that is continued is shown with its beginning
    pieces = dialogue.ask(question)
    try:
        for piece in pieces:
            screen.write(piece if has_begun else question + piece)
            has_begun = True
    except KeyboardInterrupt:
        pieces.close()
        screen.line(" ...")
        if not sys.stdin.isatty():
            raise
        return
    except Exception:
        screen.line()
        raise
    screen.line("" if has_begun else question)


def answer_lines(dialogue: Dialogue) -> None:
    """Answer each line of standard input that is not blank.

    A command, such as /quit, is not executed: a notice is printed, and the line is sent to the model. Raises UserError, which
    names the line, if a line cannot be answered.
    """
    asked = False
    for line, name in standard_input_lines("standard input"):
        if line.startswith("/") and line[1:].split(" ")[0].strip() in NAMES:
            note(f"{line.strip()} goes to the model, because commands work only in a terminal")
        if line.strip():
            asked = True
            try:
                answer(dialogue, line.strip())
            except UserError as error:
                raise UserError(f"{name}: {error}") from error
    if not asked:
        note("there is no question: give a question as an argument or by a pipe, or start the chat in a terminal")


def terminal_prompt() -> Callable[[], str]:
    """Return a function that reads a line from the terminal, with editing and history.

    Ctrl-C clears the line. On an empty line, Ctrl-C raises KeyboardInterrupt.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("c-c")
    def interrupt(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(exception=KeyboardInterrupt)

    session: PromptSession[str] = PromptSession(key_bindings=keys)
    return lambda: session.prompt("\nyou > ")


def converse(dialogue: Dialogue, prompt: Callable[[], str]) -> None:
    """Answer or execute each line that `prompt` returns, until the user leaves.

    `prompt` reads one line from the user. An error is printed and does not end the chat, so that the conversation is not lost;
    only BrokenPipeError, after the output was closed, is raised.
    """
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a background script starts its commands with Ctrl-C ignored
    answered_at, leaving, refused = -math.inf, False, ""
    while True:
        try:
            line = prompt().strip()
            answered_at, leaving = -math.inf, False
            outcome = respond(dialogue, line, is_sure=line == refused) if line else "done"
            if outcome == "quit":
                return
            refused = line if outcome == "refused" else ""
            if outcome == "answered":
                answered_at = time.monotonic()
        except EOFError:
            if not dialogue.is_saved:
                note("the conversation was not saved")
            return
        except KeyboardInterrupt:
            if time.monotonic() - answered_at < STOP_GRACE_SECONDS:
                note("the answer was already complete, so Ctrl-C had no effect")
                answered_at = -math.inf
            elif leaving or dialogue.is_saved:
                return
            else:
                leaving = True
                note("the conversation is not saved: /save FILE saves it; Ctrl-C again ends the chat")


def respond(dialogue: Dialogue, line: str, is_sure: bool = False) -> Literal["quit", "refused", "answered", "done"]:
    """Execute `line` if it is a command of the chat, or else print the model's answer to it.

    Returns "answered" after an answer, "quit" after the command /quit, and "done" after another command or an error. If the
    line looks like a misspelt command, prints a remark and returns "refused". With `is_sure=True`, the line is sent to the
    model in any case; use this if the user enters a refused line again.
    """
    try:
        executed = None if is_sure else command(dialogue, line)
        if executed is not None:
            return "quit" if executed == "quit" else "done"
        hint = remark(line, dialogue.chats)
        if hint:
            note(hint)
        answer(dialogue, line)
        if dialogue.cut:
            tokens = dialogue.max_tokens
            advice = (
                ""
                if tokens is None
                else f": for longer answers enter /settings max_tokens {2 * tokens}, or /settings max_tokens none for no limit"
            )
            note(dialogue.cut + advice)
        return "answered"
    except UserError as error:
        note(str(error))
        return "refused" if isinstance(error, NearCommand) else "done"
    except BrokenPipeError:
        raise
    except Exception as error:  # an unexpected error must not lose the conversation
        if os.environ.get("POSITRON_DEBUG") == "1":
            traceback.print_exc()
        note(f"{describe(error)[1]}; the conversation is not lost: /save FILE saves it")
        return "done"


def command(dialogue: Dialogue, line: str) -> str | None:
    """Execute the line if it is a command of the chat, and return the command's name. Return None for any other line.

    Raises UserError if the command is wrong or cannot be executed, and NearCommand if the line may be a misspelt command.
    """
    parsed = parse(line)
    if parsed is None:
        return None
    execute(dialogue, parsed)
    return parsed.name


if __name__ == "__main__":
    main()
