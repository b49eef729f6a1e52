"""Render the tables of docs/LOG.md from the numbers in docs/results/.

    python scripts/render_log.py           # write the tables
    python scripts/render_log.py --check   # exit code 1 if a table is not up to date

The table NAME is between `<!-- table: NAME -->` and `<!-- end -->`, and its numbers are in docs/results/NAME.json. The keys
of this file are `date`, `commit` (the code that was measured), `machine` (cpu, cores, torch), `command` (null: not
recorded), `seeds` (number of seeds), `columns` and `rows`. A column has a key, a title and, for numbers, a Python format
that may end with a unit (".1f %"). A row has a value for each key. A value of two numbers is a mean with its standard
deviation, or a range; the column's `pair` is the sign between them.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from positron.evaluation.log_table import table

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "LOG.md", ROOT / "docs" / "results"
_TABLE = re.compile(r"(?s)(<!-- table: ([^\n]+?) -->\n).*?(<!-- end -->)")


def rendered(text: str, results: Path = RESULTS) -> str:
    """Return the page with all tables rendered from their numbers."""

    def from_file(match: re.Match[str]) -> str:
        result = json.loads((results / f"{match[2]}.json").read_text(encoding="utf-8"))
        return f"{match[1]}\n{table(result)}\n{match[3]}"

    return _TABLE.sub(from_file, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a table is not up to date")
    options = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    new = rendered(text)
    if options.check:
        sys.exit(0 if text == new else "docs/LOG.md is not up to date: run python scripts/render_log.py")
    PAGE.write_text(new, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
