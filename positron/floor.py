"""Check whether the score of an evaluation program is possible, by means of documents whose probabilities are known exactly.

A score is impossible if the documents get a much higher probability than the true one. Such a score shows an error in the
evaluation program: for example, the model sees the text that it predicts.

positron floor --command "python my_eval.py {text} {out}"
positron floor --write documents.jsonl
positron floor --scores scores.jsonl

The program reads JSON lines, {"id": "0/7", "text": "..."}, and writes for each document a line
{"id": "0/7", "logprob": -131.2, "bytes": 871}: the natural logarithm of the probability of the whole document, and the number
of bytes of text that the program scored.

Exit code 0: the score is possible; 1: it is impossible; 2: it is not comparable, or the program failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from positron.system.command_parser import CommandParser
from positron.system.commands import words_of
from positron.system.disk import json_ready
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.formatting import counted

if TYPE_CHECKING:
    from positron.evaluation.floor import Claim, Document

DOCUMENTS = 400
MIN_CONTROLS = 5  # smallest number of control texts; for 50 documents or more, there is one for every ten


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("floor", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--command",
        metavar="COMMAND",
        help="run this program; {text} is replaced by the file of documents, {out} by the file that the program writes",
    )
    source.add_argument("--scores", metavar="FILE", help="check a file that a program has already written")
    source.add_argument("--write", metavar="FILE", help="write the file of documents, and nothing else")
    parser.add_argument(
        "--documents",
        type=int,
        default=DOCUMENTS,
        help="number of stories, of about 880 bytes each; a tenth as many control texts are added (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other documents (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as a JSON object")
    return parser


def main() -> None:
    """Run `positron floor` with the options in `sys.argv`."""
    with errors_as_one_line():
        options = arguments().parse_args()
        if options.documents < 2:
            raise UserError(f"--documents must be at least 2, not {options.documents}")
        if options.seed < 0:
            raise UserError(f"--seed must be at least 0, not {options.seed}")
        from positron.evaluation import floor

        stories = floor.documents(options.seed, options.documents)
        given = [*stories, *floor.control_texts(options.seed, stories, max(MIN_CONTROLS, options.documents // 10))]
        if options.write is not None:
            floor.write_documents(Path(options.write), given)
            controls = counted(len(given) - len(stories), "control text")
            print(f"wrote {counted(len(stories), 'story', 'stories')} and {controls} to {options.write}")
            return
        claims = floor.read_claims(Path(options.scores)) if options.scores is not None else _run(options.command, given)
        result = floor.check(given, claims)
        if options.json:
            record = dataclasses.asdict(result) | {"standard_errors": result.standard_errors}
            print(json.dumps(json_ready(record), allow_nan=False, ensure_ascii=False, indent=2))
        else:
            print(floor.as_text(result, options.seed))
        raise SystemExit({"possible": 0, "impossible": 1, "not comparable": 2}[result.verdict])


def _run(command: str, given: list[Document]) -> list[Claim]:
    """Run the user's program on the documents `given` and return the scores that it wrote.

    Raises UserError if the command is wrong, if the program fails, or if its scores cannot be read.
    """
    from positron.evaluation import floor

    if "{text}" not in command or "{out}" not in command:
        raise UserError(
            '--command must contain {text} and {out}, such as --command "python my_eval.py {text} {out}": the program reads '
            "the documents from the file {text} and writes their log-probabilities to the file {out}"
        )
    with tempfile.TemporaryDirectory(prefix="positron-floor-") as folder:
        text, out = Path(folder, "documents.jsonl"), Path(folder, "scores.jsonl")
        floor.write_documents(text, given)
        try:
            words = [word.replace("{text}", str(text)).replace("{out}", str(out)) for word in words_of(command)]
        except ValueError as error:
            raise UserError(f"--command cannot be divided into words ({error}): {command}") from error
        try:
            # what the program prints must not mix with the output of this command
            process = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), check=False)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot run the program {words[0]} of --command: {reason}") from error
        if process.returncode:
            raise UserError(
                f"the program {words[0]} of --command ended with exit code {process.returncode}: its own messages tell why"
            )
        if not out.exists():
            raise UserError(
                f"the program {words[0]} of --command did not write the file {{out}}: write a line for each document, "
                'such as {"id": "0/7", "logprob": -131.2, "bytes": 871}'
            )
        return floor.read_claims(out, f"the file {{out}} that {words[0]} wrote")  # it is deleted when this command ends


if __name__ == "__main__":
    main()
