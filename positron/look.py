"""Look inside the model of a run while it reads a prompt.

positron look quickstart "Once upon a time"
positron look quickstart "Once upon a time" --ablate 1.2 --heads
positron look quickstart "Once upon a time" --html look.html

The second command replaces the output of head 2 of layer 1 by zeros, and measures what each head does. The third command writes
a page for the browser.
"""

from __future__ import annotations

import argparse
import json
import logging
from typing import TYPE_CHECKING, Any, get_args

from positron.inference.arguments import argument, read_standard_input
from positron.stories.following import Group
from positron.system.command_parser import CommandParser
from positron.system.console import one_line, printable, say_loading
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.formatting import counted, parameter_count
from positron.system.log import screen_log
from positron.system.threads import SPIN_WRITING, spin

if TYPE_CHECKING:
    from positron.inspection.lookdata import HeadScore, LookData, Scores, TruthData
    from positron.inspection.subject import Subject
    from positron.run.folder import Run

logger = logging.getLogger("positron.look")  # under `python -m` the module is called __main__

FIRST_WORDS = "Once upon a time"  # the prompt if the user gives none
FIRST_MESSAGE = "Tell me a story about Lily."  # the same for a run that chats
BEST_SHOWN = 3  # number of most probable tokens that are shown at each position
TOKEN_WIDTH = 14


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("look", __doc__)
    parser.add_argument("run", help="run folder, or name below outputs/")
    parser.add_argument(
        "prompt",
        nargs="?",
        help="text that the model reads, or a message if the run chats; - reads standard input (default: "
        f"{FIRST_WORDS}, or {FIRST_MESSAGE})",
    )
    parser.add_argument(
        "--step",
        type=int,
        help="use the weights of this step, which train.keep_history must have kept (default: the best checkpoint)",
    )
    parser.add_argument(
        "--ablate",
        action="append",
        default=[],
        metavar="PART",
        help="replace the output of a part of the model by zeros: LAYER.HEAD (a head), LAYER.attn or LAYER.mlp; layers and "
        "heads are counted from 0; may be given several times",
    )
    parser.add_argument(
        "--heads",
        action="store_true",
        help="measure what each head does: its attention to the previous token, to the first token, and to the token after "
        "an earlier occurrence (induction), and how much the loss rises without the head; takes seconds to minutes",
    )
    parser.add_argument(
        "--history",
        action="store_true",
        help="show the loss on the prompt in bits at each step whose weights train.keep_history kept; for the built-in stories "
        "also the regret for each kind of grammar rule (how much the loss is above that of the exact probabilities)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print all results, including attention and logit lens, as one JSON object"
    )
    parser.add_argument(
        "--html",
        metavar="FILE",
        help="write one HTML page that contains the model and shows all results for any prompt, without a network or Positron",
    )
    return parser


def main() -> None:
    """Run `positron look` with the options in `sys.argv`."""
    spin(SPIN_WRITING)
    with errors_as_one_line():
        options = arguments().parse_args()
        with screen_log():
            show(options)


def show(options: argparse.Namespace) -> None:
    """Load the run and print what it computes for the prompt, or write the HTML file that `--html` names."""
    say_loading(options.run)
    given = None if options.prompt is None else argument(options.prompt, "the prompt")
    if given == "-":
        given = read_standard_input("the prompt").rstrip("\n")
    from positron.run.find import find_run

    run = find_run(options.run)
    prompt = given if given is not None else FIRST_MESSAGE if run.is_chat else FIRST_WORDS
    if options.html is not None:
        write_page(options, run, prompt)
        return
    from positron.inspection.ablation import ablation_of
    from positron.inspection.html_file import ANSWER
    from positron.inspection.subject import Subject

    ablations = [ablation_of(name) for name in options.ablate]
    subject = Subject(run)
    answer = ANSWER if subject.chats else None
    data = subject.look(prompt, step=options.step, ablations=ablations, scores=options.heads, continuation=answer)
    knows_truth = subject.knows_truth and not ablations
    truth = subject.truth(prompt, step=options.step) if knows_truth and not subject.chats else None
    if options.json:
        results: dict[str, Any] = {"look": data, "truth": truth}
        if options.history:
            results |= {"history": subject.history(), "regrets": subject.regrets() if knows_truth else None}
        print(printable(json.dumps(results, allow_nan=False)))
    else:
        size = parameter_count(data["shape"]["parameters"])
        print(f"{printable(str(subject.run.folder))}, step {data['step']}: {size}\n")
        print("\n".join([*token_table(data, truth), "", *conclusions(data, truth)]))
        if data["scores"] is not None:
            print("\n".join(["", *head_table(data["scores"])]))
        if options.history:
            print("\n".join(["", *history_table(subject, prompt, knows_truth)]))


def write_page(options: argparse.Namespace, run: Run, prompt: str) -> None:
    """Write an HTML page, which contains the model of the run, to the file that `--html` names.

    Log the size of the file, the number of bits to which the weights are rounded, and the largest difference on `prompt`
    between the logits with the rounded weights and the logits of the run. Raises UserError if an option that has no effect on
    the file is given.
    """
    if options.json:
        raise UserError("--html writes a page and --json prints numbers: give only one of them")
    if options.step is not None:
        raise UserError(
            "--html writes a page with the best checkpoint, not with that of a given step: leave --step out"
        )
    if options.ablate:
        raise UserError("--html writes a page on which you choose the ablations yourself: leave --ablate out")
    from positron.inspection.html_file import write_html
    from positron.system.disk import expanded, refuse_no_place

    path = expanded(options.html)
    refuse_no_place(path)
    written = write_html(run, prompt, path)
    logger.info(
        f"{written.path}: {written.size:,} bytes; weights rounded to {written.bits} bits, logits differ from those of the run "
        f"by at most {written.difference:.2g}"
    )


def token_table(data: LookData, truth: TruthData | None) -> list[str]:
    """Return the lines of a table with one row per token of the prompt, and a last row for the token after the prompt.

    A row has the probability of its token in the model, its loss in bits, and the most probable tokens at its position. If
    `truth` is given, the row also has the exact probability of the token under the grammar of the built-in stories, and the
    regret: the loss of the model minus the loss of the exact probability, in bits. The token that begins a document has no row.
    """
    head = f"{'token':<{TOKEN_WIDTH}} {'probability':>11} {'bits':>6}"
    head += f" {'exact':>7} {'regret':>7}" if truth else ""
    lines = [f"{head}   most probable"]
    for t, token in enumerate(data["tokens"]):
        if token["p"] is None or token["bits"] is None:  # the token that begins a document
            continue
        line = f"{_shown(token['text']):<{TOKEN_WIDTH}} {token['p']:>11.4f} {token['bits']:>6.2f}"
        if truth is not None:
            true = truth["tokens"][t]
            is_known = true["true"] is not None and true["regret"] is not None
            line += f" {true['true']:>7.4f} {true['regret']:>+7.2f}" if is_known else f" {'-':>7} {'-':>7}"
        best = (f"{_shown(one['text'])} {one['p']:.2f}" for one in data["next"][t - 1]["top"][:BEST_SHOWN])
        lines.append(f"{line}   {'  '.join(best)}")
    best = (f"{_shown(one['text'])} {one['p']:.2f}" for one in data["next"][-1]["top"][:BEST_SHOWN])
    blank = " " * (TOKEN_WIDTH + 19 + (16 if truth else 0))
    return [*lines, f"{'(next)':<{TOKEN_WIDTH}}{blank[TOKEN_WIDTH:]}   {'  '.join(best)}"]


def conclusions(data: LookData, truth: TruthData | None) -> list[str]:
    """Return the lines below the table of tokens.

    The first line gives the total bits: the loss of the model on the prompt. If `truth` (the exact probabilities under the
    grammar of the built-in stories) is given, the next line gives the total regret: the loss of the model minus the loss of the
    exact probabilities. If the grammar cannot generate the prompt, this line is followed by a line with the first character
    that does not fit. If --ablate is given, a line compares the loss with and without the ablated parts. If the model was
    fine-tuned on conversations, the last line is its answer to the prompt.
    """
    bits = sum(token["bits"] or 0.0 for token in data["tokens"])
    lines = [f"{bits:.2f} bits for {counted(len(data['tokens']) - 1, 'token')}"]
    if truth is not None:
        known = [token for token in truth["tokens"] if token["regret"] is not None]
        regret = sum(token["regret"] or 0.0 for token in known)
        lines.append(
            f"regret {regret:+.2f} bits over {counted(len(known), 'token')}: what the model loses against the exact "
            "probabilities of the grammar"
        )
        if truth["departure"] is not None:
            place = truth["departure"]
            lines.append(f"from character {place['character']} on: {one_line(place['message'])}")
    if data["ablation"] is not None and data["ablation"]["before"] is not None:
        parts = ", ".join(f"{part['layer']}.{part['part']}" for part in data["ablation"]["ablations"])
        before, after = data["ablation"]["before"], data["ablation"]["after"]
        lines.append(f"without {parts}: {after:.3f} bits per token; with all parts {before:.3f}")
    if data["chats"] and data["continuation"] is not None:
        lines.append(f"answer: {one_line(data['continuation'])}")
    return lines


def history_table(subject: Subject, prompt: str, has_truth: bool) -> list[str]:
    """Return the lines of a table with one row for each step whose weights were kept.

    A row has the loss on the prompt in bits. With `has_truth`, it also has the regret on validation stories, or on their first
    tokens, in bits per story: first the total, and then the regret at each kind of grammar rule. The regret is the loss of the
    model minus the loss of the exact probabilities of the grammar. Raises UserError if the run kept no weights.
    """
    steps = [point["step"] for point in subject.history()["points"]]
    if not steps:
        raise UserError(
            f"{subject.run.folder} kept no weights of earlier steps, which --history needs: "
            "train a run with train.keep_history=20"
        )
    regrets = subject.regrets() if has_truth else None
    by_step = {point["step"]: point["rules"] for point in regrets["points"]} if regrets else {}
    groups = [group for group in get_args(Group) if any(rule["group"] == group for rule in by_step.get(steps[-1], []))]
    head = f"{'step':>7} {'prompt':>8}" + (f" {'regret':>8}" if groups else "")
    lines = [head + "".join(f" {group:>{max(8, len(group))}}" for group in groups)]
    for step in steps:
        bits = sum(token["bits"] or 0.0 for token in subject.look(prompt, step=step, attention=[])["tokens"])
        line = f"{step:>7} {bits:>8.1f}"
        if regrets is not None:
            sums = [sum(rule["regret"] for rule in by_step[step] if rule["group"] == group) for group in groups]
            each = [total / regrets["stories"] for total in (sum(sums), *sums)]
            widths = [8, *(max(8, len(group)) for group in groups)]
            line += "".join(f" {value:>{width}.2f}" for value, width in zip(each, widths, strict=True))
        lines.append(line)
    lines.append("")
    lines.append("prompt: bits of the whole prompt")
    if regrets is not None:
        beginnings = "" if regrets["tokens"] is None else f"the first {counted(regrets['tokens'], 'token')} of "
        lines.append(
            f"regret: bits per story that the model loses, on {beginnings}{regrets['stories']} validation stories; the "
            "columns after regret show how much of it belongs to each kind of grammar rule"
        )
    return lines


def head_table(scores: Scores) -> list[str]:
    """Return the lines of a table with one row for each head, each attention layer and each MLP.

    The row of a head shows the mean attention of the head to three tokens: the previous token, the token that followed an
    earlier occurrence of the same token ("induction"), and the first token. Each row also shows a cost in bits per token: how
    much the loss on the validation text rises if the output of the head, attention layer or MLP is replaced by zeros.
    """
    lines = [
        f"{'part':<8} {'previous':>9} {'induction':>9} {'first':>9} {'on text: previous':>18} {'induction':>9} {'cost':>8}"
    ]
    for layer, heads in enumerate(scores["heads"]):
        lines += [f"{f'{layer}.{head}':<8} {_head(score)}" for head, score in enumerate(heads)]
        for part, costs in (("attn", scores["attn"]), ("mlp", scores["mlp"])):
            lines.append(f"{f'{layer}.{part}':<8} {'':>58} {_number(costs[layer], 8)}")
    lines.append("")
    lines.append(
        f"previous, induction, first: mean attention to the token just before, to the token that followed the earlier "
        f"occurrence of the same token, and to the first token; measured on {scores['sequences']} rows, each with "
        f"{scores['repeated']} random tokens followed by the same tokens again"
    )
    if scores["text_chance"] is not None:
        lines.append(
            f"on text: measured on {scores['validation']:,} tokens of validation text, where a head that attends equally to "
            f"all earlier tokens has an induction of {scores['text_chance']:.3f}; cost: how much the loss on this text, "
            f"{scores['bits']:.3f} bits per token, rises without the part"
        )
    return lines


def _head(score: HeadScore) -> str:
    random = " ".join(f"{score[key]:>9.3f}" for key in ("previous", "induction", "first"))
    return f"{random} {_number(score['text_previous'], 18)} {_number(score['text_induction'], 9)} {_number(score['cost'], 8)}"


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.3f}"


def _shown(text: str) -> str:
    """Escape control characters in a token, and remove the spaces around it; put a token of only spaces in quotes."""
    shown = one_line(text)
    return shown.strip(" ") if shown.strip(" ") else repr(shown)


if __name__ == "__main__":
    main()
