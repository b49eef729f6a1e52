"""The log of measurements: every entry says how its figures came about, and its tables are those of the stored figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from positron.evaluation.log_table import cell, table
from scripts.render_log import PAGE, RESULTS, rendered

TEXT = PAGE.read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"(?ms)^## (.*?)\n(.*?)(?=^## |\Z)", TEXT))
FILES = sorted(RESULTS.glob("*.json"))


def test_the_tables_are_those_of_the_figures() -> None:
    assert rendered(TEXT) == TEXT, "run python scripts/render_log.py"


def test_a_changed_figure_changes_the_page(tmp_path: Path) -> None:
    for path in FILES:
        result = json.loads(path.read_text(encoding="utf-8"))
        result["rows"] = result["rows"][1:]
        (tmp_path / path.name).write_text(json.dumps(result))
    assert rendered(TEXT, tmp_path) != TEXT


@pytest.mark.parametrize("title", ENTRIES)
def test_an_entry_has_a_date_a_verdict_and_what_is_needed_to_repeat_it(title: str) -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d · .+ \((adopted|rejected|no difference|measured)\b.*\)", title)
    fields = dict(re.findall(r"^- ([A-Z][\w ]+): (.+)$", ENTRIES[title], re.M))
    assert {"Commit", "Machine", "Command", "Seeds", "Open"} <= set(fields)
    assert re.search(r"`[0-9a-f]{7,}`", fields["Commit"])
    if "not recorded (" in fields["Command"] or fields["Command"] == "not recorded":
        assert "Not reproducible" in fields or re.search(r"\(`experiment=", fields["Command"])


def test_entries_are_sorted_newest_first() -> None:
    dates = [title[:10] for title in ENTRIES]
    assert dates == sorted(dates, reverse=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_figures_says_how_they_came_about_and_belongs_to_an_entry(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert path.stem.startswith(f"{result['date']}-")
    assert set(result["machine"]) == {"cpu", "cores", "torch"}
    assert "command" in result
    assert result["seeds"] >= 1
    keys = {column["key"] for column in result["columns"]}
    assert result["rows"]
    assert all(set(row) <= keys for row in result["rows"])
    (entry,) = (text for text in ENTRIES.values() if f"<!-- table: {path.stem} -->" in text)
    assert f"`{result['commit']}`" in entry


@pytest.mark.parametrize(
    ("value", "column", "shown"),
    [
        (13752, {"format": ",d"}, "13,752"),
        (96, {"format": ".0f %"}, "96 %"),
        (0.23, {"format": ".2fM"}, "0.23M"),
        ([1.0797, 0.017], {"format": ".4f", "pair": "±"}, "1.0797 ± 0.0170"),
        (None, {"format": ".4f"}, ""),
        ("adopted", {}, "adopted"),
    ],
)
def test_a_cell_is_written_as_its_column_says(value: Any, column: dict[str, str], shown: str) -> None:
    assert cell(value, column) == shown


def test_a_table_has_a_row_for_each_row_of_figures() -> None:
    columns = [{"key": "recipe", "title": "recipe"}, {"key": "bpb", "title": "bits per byte", "format": ".2f"}]
    figures = {"columns": columns, "rows": [{"recipe": "a", "bpb": 0.5}, {"recipe": "b"}]}
    assert table(figures) == "| recipe | bits per byte |\n| --- | ---: |\n| a | 0.50 |\n| b |  |\n"
