"""Measure a run: its loss on a text, and the quality of the stories that it writes.

positron evaluate --run outputs/quickstart
positron evaluate --run outputs/quickstart --text book.txt
positron evaluate --stories --instruct
positron evaluate --run seed-0,seed-1,seed-2
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from typing import TYPE_CHECKING, Any, assert_never

from positron.cli.sampling_options import chosen_sampling, run_option, sampling_options
from positron.config import DataConfig
from positron.settings import from_dict
from positron.system.callable_module import make_callable
from positron.system.command_parser import CommandParser
from positron.system.commands import command
from positron.system.console import say_loading
from positron.system.disk import json_ready
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.formatting import above_floor, counted, parameter_count, percent
from positron.system.log import screen_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from positron.data.conversations import Conversation
    from positron.data.shards import TokenFiles
    from positron.evaluation.score import Score
    from positron.inference.text_model import Writer
    from positron.run.folder import Run

logger = logging.getLogger("positron.evaluate")  # under `python -m` the module is called __main__

TABLE_WIDTH = 14


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("evaluate", __doc__)
    run_option(parser)
    text = parser.add_mutually_exclusive_group()
    text.add_argument(
        "--text", metavar="FILE", help="score this file (.txt, .jsonl, .csv, .parquet and others) or folder of files"
    )
    text.add_argument(
        "--split",
        choices=("val", "train"),
        default="val",
        help="score this part of the run's own text: validation (default) or training",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=1_000_000,
        help="score documents from the beginning of the text until this number of bytes is reached; a document that is longer "
        "than this number is cut (default %(default)s; 0: all documents)",
    )
    parser.add_argument(
        "--stride",
        type=int,
        help="move the window, which is as long as the context, by this many tokens and score only the new tokens; a smaller "
        "number is slower and more exact (default: half the context length)",
    )
    parser.add_argument(
        "--stories",
        action="store_true",
        help="let the run write stories, and check them by the grammar of the built-in stories",
    )
    parser.add_argument(
        "--instruct",
        action="store_true",
        help="ask the run for stories, and check whether the stories are as requested",
    )
    parser.add_argument(
        "--count", type=int, default=200, help="number of stories (and of requests) to check (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print all figures as one JSON object")
    sampling_options(parser, "balanced for stories, precise for --instruct")
    return parser


def main() -> None:
    """Run `positron evaluate` with the options in `sys.argv`."""
    with errors_as_one_line():
        options = arguments().parse_args()
        facts = figures(options)
        print(json.dumps(json_ready(facts), allow_nan=False) if options.json else as_text(facts))


@screen_log()
def figures(options: argparse.Namespace) -> dict[str, Any]:
    """Return the measurements that the options of the command ask for. Raises UserError if a measurement is impossible."""
    say_loading(options.run or "PyTorch")
    if options.limit < 0:
        raise UserError(f"--limit must be at least 0 bytes, not {options.limit}")
    if options.count < 1:
        raise UserError(f"--count must be at least 1, not {options.count}")
    if options.stories and options.seed < 0:  # the new stories have the seed -1 - seed, which would be that of a corpus
        raise UserError(f"--seed must be at least 0 with --stories, not {options.seed}")
    chosen_sampling(options, default="precise")  # refused before anything is loaded
    from positron.run.ensemble import find_runs, load_models, names_of
    from positron.run.find import announce

    runs = find_runs(options.run)
    announce(runs[0], options.run)
    # refused before anything is measured
    training = training_text(runs) if options.stories else None
    requests = requests_of_all(runs) if options.instruct else None
    from positron.inference.text_model import Writer
    from positron.model.ensemble import members_of

    model, tokenizer, paths = load_models(runs)
    sizes = [member.config.n_params() for member in members_of(model)]
    for run, path, size in zip(runs, paths, sizes, strict=True):
        logger.info(f"{run.folder}, {path.name}: {parameter_count(size)}")
    writer = Writer(model, tokenizer, weights=options.weights)
    facts: dict[str, Any] = {
        "run": names_of(runs),
        "checkpoint": ",".join(path.name for path in paths),
        "parameters": sum(sizes),
    }
    facts |= text_facts(runs, writer, options)
    losses = [facts["loss"]] if len(runs) == 1 else [member["loss"] for member in facts["members"]]
    for path, loss in zip(paths, losses, strict=True):
        if not math.isfinite(loss):
            raise UserError(
                f"the loss of {path} on {facts['text']} is NaN or infinite, because the training diverged or the "
                "weights are damaged: train again under another name= with a lower optimizer.lr=, or import the model again"
            )
    if training is not None:
        facts["stories"] = story_facts(training, writer, options)
    if requests is not None:
        facts["instruct"] = instruct_facts(requests, writer, options)
    return facts


def text_facts(runs: Sequence[Run], writer: Writer, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the loss on the text that the options choose, and return it with the size of the text and the settings used.

    `writer` holds the model of the run, or the ensemble of the runs' models, with its tokenizer. `options` are the options of
    the command. Each document is scored from its beginning to its end. Several runs are scored as an ensemble; the result then
    also contains the score of each run and the gain of the ensemble over the runs (see `ensemble_facts`).
    """
    from positron.evaluation.ensemble import ensemble_facts
    from positron.evaluation.eval_texts import common_texts, floor_of, floor_of_run, texts_of_file, up_to
    from positron.evaluation.scoring import interval, sampling_units, score_ensemble, score_windows, total
    from positron.inference.int8 import round_weights
    from positron.model.ensemble import Ensemble, members_of

    if options.text is not None:
        texts, name = texts_of_file(options.text), options.text
    else:
        texts, name = (
            common_texts(runs, options.split, options.limit),
            f"the {'validation' if options.split == 'val' else 'training'} part of the run's own text",
        )
    texts = up_to(texts, options.limit)
    floor: float | None = None
    if options.stories:
        floor = floor_of(texts)
    elif options.text is None:
        floor = floor_of_run(runs[0], options.split, texts)
    start = time.perf_counter()
    models = [round_weights(member, writer.dtype) for member in members_of(writer.model)]
    by_member: list[list[list[Score]]] = []
    if len(models) == 1:
        documents = score_windows(models[0], writer.tokenizer, texts, stride=options.stride)
    else:
        documents, by_member = score_ensemble(Ensemble(models), writer.tokenizer, texts, stride=options.stride)
    seconds = time.perf_counter() - start
    whole = total([total(scores) for scores in documents])
    units, kind = sampling_units(documents)
    half_width = interval(units)
    context = writer.context
    facts = {
        "text": name,
        "weights": options.weights,
        "documents": len(documents),
        "bytes": whole.bytes,
        "tokens": whole.tokens,
        "context": context,
        "stride": options.stride or max(1, context // 2),
        "loss": whole.loss,
        "perplexity": whole.perplexity,
        "tokenizer": f"{writer.tokenizer.kind}, {writer.tokenizer.vocab_size:,} ids",
        "bpb": whole.bpb,
        "bpb_interval": half_width,
        "interval_over": None if half_width is None else f"{len(units):,} {kind}",
        "floor_bpb": floor,
        "in_training": in_training(runs) if options.text is None and options.split == "val" else None,
        "tokens_per_second": whole.tokens / seconds,
    }
    if by_member:
        facts |= ensemble_facts([str(run.folder) for run in runs], documents, by_member)
    return facts


def in_training(runs: Sequence[Run]) -> float | None:
    """Return the bits per byte of a run's best checkpoint, as training measured them on the validation text.

    Returns None for several runs (an ensemble), and for a run that neither `train` nor `distill` made, such as a fine-tuned
    run.
    """
    from positron.run.folder import FROM_TEXT

    run, *others = runs
    return None if others else run.facts().best_bpb if run.kind in FROM_TEXT else None


def story_facts(training: TokenFiles, writer: Writer, options: argparse.Namespace) -> dict[str, Any]:
    """Let the model write stories, and return measurements of their quality.

    The key "grammar" holds the same measurements of new stories from the built-in grammar. They are generated with the negative
    seed -1 - `options.seed`, while training texts have seeds of 0 or larger. `training` is the training text, from which the
    model may have copied.
    """
    import dataclasses

    from positron import stories
    from positron.evaluation.story_quality import quality, write_stories

    sampling = chosen_sampling(options, default="balanced")
    written = write_stories(writer, options.count, sampling, options.seed, longest(writer))
    fresh = [story.text for story in stories.documents(-1 - options.seed, 0, options.count)]
    measured = quality([story.text for story in written], writer.tokenizer, training)
    return {
        "count": options.count,
        "sampling": dataclasses.asdict(sampling),
        "ended": sum(story.ended for story in written) / len(written),
        **dataclasses.asdict(measured),
        "grammar": dataclasses.asdict(quality(fresh, writer.tokenizer, training)),
    }


def training_text(runs: Sequence[Run]) -> TokenFiles:
    """Return the training text of the runs. Raises UserError if their texts differ or are not available."""
    from positron.evaluation.eval_texts import token_files

    training, *others = [token_files(run, "train", "leave --stories out, which needs this text") for run in runs]
    for run, other in zip(runs[1:], others, strict=True):
        if other.fingerprint != training.fingerprint:
            raise UserError(
                f"{runs[0].folder} and {run.folder} were trained on different texts, so --stories cannot count what is copied "
                "from the training text: leave --stories out"
            )
    return training


def instruct_facts(data: DataConfig, writer: Writer, options: argparse.Namespace) -> dict[str, Any]:
    """Let the model answer `options.count` new requests for a story, and return the results and the sampling settings.

    `data` are the data settings of the requests on which the model was trained (see `requests_of_all`).

    The results have the keys `followed`, `accepted` and `ended` (shares of the answers, see `Following`), and `count`, the
    number of answers. A request is a combination of a name, an object and a place. If data.val_fraction is above 0, the
    fine-tuning contained none of the requested combinations. If it is 0, the fine-tuning may have contained some of them.
    """
    import dataclasses

    from positron import stories
    from positron.data.conversations import story_requests
    from positron.evaluation.story_quality import answer_requests, following

    unseen: list[int] = []  # indices of requests
    conversations: list[Conversation] = []
    index = data.examples  # smaller indices took part in fine-tuning, for training or validation
    while len(conversations) < options.count:
        (conversation,) = story_requests(data.seed, index, index + 1, data.val_fraction)
        if conversation.is_val or not data.val_fraction:  # without a split, training may contain the combination
            unseen.append(index)
            conversations.append(conversation)
        index += 1
    sampling = chosen_sampling(options, default="precise")
    written = answer_requests(writer, conversations, sampling, options.seed, longest(writer))
    measured = following(written, [stories.requests(data.seed, i) for i in unseen])
    return {"count": len(written), "sampling": dataclasses.asdict(sampling), **dataclasses.asdict(measured)}


def requests_of_all(runs: Sequence[Run]) -> DataConfig:
    """Return the data settings of the requests on which all runs were trained (see `_requests_of`).

    Raises UserError for a run that was not fine-tuned on conversations, and if the runs were fine-tuned on different requests.
    """
    for run in runs:
        if not run.is_chat:
            raise UserError(
                f"{run.folder} was not fine-tuned on conversations: --instruct needs a run of {command('sft')}"
            )
    data, *others = map(_requests_of, runs)
    for run, other in zip(runs[1:], others, strict=True):
        if (other.seed, other.examples, other.val_fraction) != (data.seed, data.examples, data.val_fraction):
            raise UserError(
                f"{runs[0].folder} and {run.folder} were fine-tuned on different requests, so no request is known to be new to "
                "both: leave --instruct out"
            )
    return data


def _requests_of(run: Run) -> DataConfig:
    """Return data settings that describe the story requests on which the run was trained.

    For data=story_instruct, these are the data settings of the run. For data=story_preference, the run was trained on pairs of
    answers to requests. In this case, `seed` and `val_fraction` are those of the run, and `examples` is its number of pairs,
    but at least the default number of requests. The base run of such a run may have been trained on other requests, which the
    result does not describe. For other data, the default settings of data=story_instruct are returned.
    """
    data = from_dict(DataConfig, run.config()["data"])
    match data.source:
        case "story_instruct":
            return data
        case "story_preference":
            examples = max(data.examples, DataConfig.examples)
            return DataConfig("story_instruct", seed=data.seed, val_fraction=data.val_fraction, examples=examples)
        case "stories" | "text" | "hub" | "instruct" | "preferences" | "addition" | "imported":
            return DataConfig("story_instruct")
        case _:
            assert_never(data.source)


def longest(writer: Writer) -> int:
    """Return the maximum number of tokens of a story: twice the context length of the model, but at least 16."""
    return max(16, 2 * writer.context)


def as_text(facts: dict[str, Any]) -> str:
    """Return the measurements as lines of text; `facts` is the result of `figures`."""
    half_width = facts["bpb_interval"]
    lines = [
        f"text            {facts['text']}: {counted(facts['documents'], 'document')}, {facts['bytes']:,} bytes",
        f"bits per byte   {facts['bpb']:.4f}"
        + (f" ± {half_width:.4f} (95% interval over {facts['interval_over']})" if half_width is not None else ""),
        f"loss            {facts['loss']:.4f} nats per token",
        f"perplexity      {facts['perplexity']:.3f} (per token of the run's tokenizer: {facts['tokenizer']})",
        f"window          {facts['context']} tokens, the last {facts['stride']} of them scored at a time",
        f"speed           {facts['tokens_per_second']:,.0f} tokens/s",
    ]
    if facts["weights"] != "fp32":
        lines.insert(1, f"weights         {facts['weights']}")
    if facts["floor_bpb"] is not None:
        lines.insert(
            -4, f"floor           the model is {above_floor(facts['bpb'], facts['floor_bpb'])}, the entropy of the text"
        )
    if facts["in_training"] is not None:
        method = (
            "measured on the first train.val_tokens tokens, in windows without overlap, so each token has less context"
        )
        lines.insert(-4, f"in training     {facts['in_training']:.4f} bits per byte ({method})")
    if "members" in facts:
        from positron.evaluation.ensemble import as_lines

        lines += ["", *as_lines(facts)]
    if "stories" in facts:
        lines += ["", *_stories(facts["stories"])]
    if "instruct" in facts:
        answers = facts["instruct"]
        lines += [
            "",
            f"{counted(answers['count'], 'unseen request')}, {_sampling(answers['sampling'])}",
            f"followed        {percent(answers['followed'])} (name, object, place and plot are as requested)",
            f"accepted        {percent(answers['accepted'])} (nothing in the story contradicts itself)",
            f"ended           {percent(answers['ended'])} by themselves",
        ]
    return "\n".join(lines)


def _stories(facts: dict[str, Any]) -> list[str]:
    rows = [
        f"{counted(facts['count'], 'story', 'stories')}, {_sampling(facts['sampling'])}",
        f"{'':<30}{'the model':>{TABLE_WIDTH}}{'the grammar':>{TABLE_WIDTH}}",
    ]
    names = {
        "accepted": "accepted by the parser",
        "distinct_2": "distinct pairs of words",
        "distinct_3": "distinct triples of words",
        "copied": "50 tokens copied from training",
    }
    for key, name in names.items():
        cells = [f"{side[key]:.1%}" if side[key] is not None else "-" for side in (facts, facts["grammar"])]
        rows.append(f"{name:<30}" + "".join(f"{cell:>{TABLE_WIDTH}}" for cell in cells))
    rows.append(f"{'ended by themselves':<30}{facts['ended']:>{TABLE_WIDTH}.1%}")
    return rows


def _sampling(values: dict[str, Any]) -> str:
    if values["temperature"] == 0:
        return "always the likeliest token"
    limits = [f"{name} {values[name]}" for name in ("top_k", "top_p", "min_p") if values[name] is not None]
    return ", ".join([f"temperature {values['temperature']}", *limits])


if __name__ == "__main__":
    main()
else:
    make_callable(__name__)
