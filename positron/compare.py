"""Compare runs on the same text by loss, curves and samples, or compare two variants of the settings (--paired).

The two variants are compared by pairs of runs: the two runs of a pair have the same seed, and each has the settings of one
variant.

positron compare outputs/small outputs/large
positron compare --csv > runs.csv
positron compare --paired outputs/sweeps/grid:optimizer.lr=1e-3 outputs/sweeps/grid:optimizer.lr=3e-3
"""

from __future__ import annotations

import argparse
import logging
import shutil
from pathlib import Path

from positron.inference.arguments import argument, seed_of
from positron.system.command_parser import CommandParser
from positron.system.console import printable, say_loading
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.formatting import side_by_side
from positron.system.log import screen_log

logger = logging.getLogger("positron.compare")  # under `python -m` the module is called __main__


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("compare", __doc__)
    parser.add_argument(
        "runs",
        nargs="*",
        help="runs: their folders, their names below outputs/, or a folder that contains runs (default: all runs in outputs/); "
        "with --paired also FOLDER:KEY=VALUE, the runs of a folder that have this value",
    )
    parser.add_argument(
        "--paired",
        action="store_true",
        help="compare two variants A and B, or the two in one folder, by pairs of runs with the same seed: mean difference in "
        "bits per byte, intervals over seeds and documents, p-values, and the number of further seeds needed",
    )
    parser.add_argument(
        "--differ-in",
        metavar="KEYS",
        help="with --paired: the settings (or groups, such as optimizer), separated by commas, in which the runs of a pair may "
        "differ (default: any one setting that does not change the data order)",
    )
    parser.add_argument("--text", metavar="FILE", help="score this text (default: the validation text of the runs)")
    parser.add_argument(
        "--limit",
        type=int,
        default=200_000,
        help="score documents from the beginning of the text until this number of bytes is reached; a document that is longer "
        "than this number is cut (default %(default)s; 0: all documents)",
    )
    parser.add_argument(
        "--prompt",
        default="Once upon a time",
        help="prompt that every run continues, and that a chat model answers (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=120, help="length of each continuation in tokens (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="random seed of the continuations (default %(default)s)")
    output_format = parser.add_mutually_exclusive_group()
    output_format.add_argument("--csv", action="store_true", help="print the table as CSV")
    output_format.add_argument("--json", action="store_true", help="print the table, or the comparison, as JSON")
    output_format.add_argument(
        "--log-row",
        action="store_true",
        help="with --paired: print a file for docs/results/, from which scripts/render_log.py renders a table of docs/LOG.md",
    )
    parser.add_argument(
        "--png",
        metavar="FILE",
        help="write the plot of the validation curves and the scores to this file (default: outputs/compare.png)",
    )
    return parser


def main() -> None:
    """Run `positron compare` with the options in `sys.argv`."""
    with errors_as_one_line(), screen_log():
        options = arguments().parse_args()
        if options.limit < 0:
            raise UserError(f"--limit must be at least 0 bytes, not {options.limit}")
        if options.max_tokens < 1:
            raise UserError(f"--max-tokens must be at least 1, not {options.max_tokens}")
        if options.paired:
            _compare_pairs(options)
            return
        if options.differ_in is not None or options.log_row:
            option = "--log-row" if options.differ_in is None else "--differ-in"
            raise UserError(f"{option} is read only with --paired: add --paired, or leave {option} out")
        for name in options.runs:
            if ":" in name and "=" in name.rpartition(":")[2] and not Path(name).exists():
                raise UserError(f"{name} has the form FOLDER:KEY=VALUE, which only --paired reads: add --paired")
        prompt, seed = argument(options.prompt, "--prompt"), seed_of(options.seed)
        say_loading(", ".join(options.runs) or "all runs in outputs/")
        _compare_runs(options, prompt, seed)


def _compare_runs(options: argparse.Namespace, prompt: str, seed: int) -> None:
    from positron.evaluation import comparison
    from positron.evaluation.run_plots import comparison_picture
    from positron.run.folder import OUTPUTS, Run
    from positron.system.disk import expanded, make_folder, refuse_no_place, whole_file

    if options.png:
        refuse_no_place(expanded(options.png))
    runs = comparison.find_runs(options.runs, OUTPUTS)
    if not options.runs:
        logger.info(f"no run was named: comparing all runs in outputs/: {', '.join(run.folder.name for run in runs)}")
    runs, texts = comparison.common_text(runs, options.text, options.limit)
    rows = comparison.compare(runs, texts, prompt, options.max_tokens, seed)
    if options.csv:
        print(comparison.as_csv(rows))
    elif options.json:
        print(comparison.as_json(rows))
    else:
        print("\n" + comparison.as_table(rows) + "\n")
        width = shutil.get_terminal_size().columns
        print(side_by_side([(printable(row.run), printable(row.sample)) for row in rows], width) + "\n")
    elsewhere = "give --png FILE"
    path = expanded(options.png) if options.png else make_folder(OUTPUTS, instead=elsewhere) / "compare.png"
    bars = [(row.run, row.bpb, row.interval or 0.0) for row in rows]
    compared = [Run(Path(row.run)) for row in rows]
    is_same_text = comparison.are_validated_alike(compared)
    with whole_file(path, instead=elsewhere) as file:
        file.write(comparison_picture(comparison.curves(compared), bars, is_same_text=is_same_text))
    logger.info(f"wrote the picture {path}")


def _compare_pairs(options: argparse.Namespace) -> None:
    defaults = arguments()
    for name in ("csv", "png", "prompt", "max_tokens", "seed"):
        if getattr(options, name) != defaults.get_default(name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"--paired does not use {option}: leave {option} out")
    if not options.runs:
        raise UserError(
            "--paired compares two variants: name two runs, two folders of runs, or one folder with the runs of both variants"
        )
    say_loading(", ".join(options.runs))
    from positron.evaluation import paired
    from positron.evaluation.comparison import GIVE_ANOTHER_TEXT, common_text
    from positron.evaluation.pairing import find_pairs, settings_named
    from positron.run.folder import OUTPUTS

    pairs = find_pairs(options.runs, OUTPUTS, settings_named(options.differ_in or ""))
    runs = [run for pair in pairs.runs for run in pair]
    available, texts = common_text(runs, options.text, options.limit)
    if len(available) < len(runs):
        missing = next(run for run in runs if run not in available)
        raise UserError(f"the text of {missing.folder} is not available: {GIVE_ANOTHER_TEXT}")
    result = paired.measure(pairs, texts)
    if options.json:
        print(paired.as_json(result))
    elif options.log_row:
        print(paired.as_log_row(pairs, result))
    else:
        print("\n" + paired.as_text(result))


if __name__ == "__main__":
    main()
