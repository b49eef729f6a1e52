"""Format numbers and tables, so that they look the same on the screen and in reports.

This module imports only the standard library.
"""

from __future__ import annotations

from collections.abc import Sequence

USUAL_TOKENS_PER_PARAMETER = 20  # compute-optimal pretraining, Hoffmann et al. 2022 (arXiv:2203.15556)


def percent(share: float) -> str:
    """Write a share as a percentage with one decimal: 0.0443 as 4.4%."""
    return f"{share:.1%}"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Write a number with its noun in the right form: 1 token, 1,200 tokens."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def amount(value: float) -> str:
    """Write a number with at most three digits and a unit: 12,345,678 as 12.3M."""
    return "".join(_three_digits(value, "kMBT"))


def with_prefix(value: float) -> str:
    """Write a number with at most three digits and a unit prefix: 4.25e12 as `4.25 T`, so that the caller can append `B`."""
    return " ".join(_three_digits(value, "kMGTPE"))


def _three_digits(value: float, units: str) -> tuple[str, str]:
    """Divide a number by 1000 until it has at most three digits before the point; return it as text, and its unit.

    `units` are the units for 1000, 1000², 1000³ and so on. The returned unit is empty for numbers below 999.5.
    """
    unit = ""
    for larger in units:
        if value < 999.5:  # three digits would round a larger value up to the next unit
            break
        value, unit = value / 1000, larger
    return f"{value:.3g}", unit


def read_amount(text: str) -> float:
    """Read what `amount` writes: 12.3M as 12,300,000. Returns NaN for a text that is not a number."""
    text = text.strip()
    factor = {"k": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}.get(text[-1:], 0)
    try:
        return float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        return float("nan")


def parameter_count(parameters: int) -> str:
    """Write the number of a model's parameters in millions: 30,000 as "0.03M parameters"."""
    return f"{parameters / 1e6:.2f}M parameters"


def took(seconds: float) -> str:
    """Format a duration with a suitable unit: 4 seconds, 3.6 minutes, 2.5 hours."""
    if seconds < 1:
        return "less than a second"
    if seconds < 59.5:
        return counted(round(seconds), "second")
    return f"{seconds / 60:.1f} minutes" if seconds < 59.95 * 60 else f"{seconds / 3600:.1f} hours"


def above(bpb: float, floor: float) -> float:
    """Return how far `bpb` bits per byte are above `floor`, as a share of the floor: 0.05 for 5% above."""
    return bpb / floor - 1


def above_floor(bpb: float, floor: float) -> str:
    """Describe how far `bpb` bits per byte are above the floor, which is the entropy of the text.

    A value clearly below the floor means that the model has seen the validation text. More than 100% above is written as a
    multiple of the floor, which is easier to imagine than "1030% above".
    """
    share = above(bpb, floor)
    if share > 1:
        return f"{bpb / floor:.1f} times the floor of {floor:.4f}"
    return f"{percent(abs(share))} {'below' if share < 0 else 'above'} the floor of {floor:.4f}"


def representative_bpb(last: float, best: float, on_answers: bool) -> float:
    """Return the validation bits per byte to report for a training: `best` if `on_answers` is true, otherwise `last`.

    `last`: the value at the end of the training. `best`: the lowest value during the training. `on_answers`: true if validation
    scores only the answers of conversations, as in supervised fine-tuning.
    """
    return best if on_answers else last


def tokens_per_parameter(tokens: float, parameters: int) -> str:
    """Describe how many training tokens the model has for each parameter, and add the usual optimum, 20, for comparison.

    Numbers below 10 have one or two significant digits, so that a small number is not rounded to zero.
    """
    ratio = tokens / parameters
    shown = f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}" if ratio >= 1e-3 else f"{ratio:.1g}"
    noun = "token" if shown == "1" else "tokens"
    return f"{shown} {noun} per parameter (about {USUAL_TOKENS_PER_PARAMETER} is the usual optimum)"


def aligned(rows: Sequence[Sequence[str]], *, underline: bool = False) -> str:
    """Write rows of cells as columns, two spaces apart; `underline` draws a line below the first row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if underline:
        rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def side_by_side(columns: Sequence[tuple[str, str]], width: int) -> str:
    """Format (title, text) pairs as columns, as many beside each other as fit into `width` characters.

    A column has at least 24 characters, or `width` - 2 if `width` is less than 26, but at least 1.
    """
    import textwrap

    per_row = max(1, min(len(columns), width // 26))
    column_width = max(1, width // per_row - 2)
    blocks = []
    for start in range(0, len(columns), per_row):
        cells = []
        for title, text in columns[start : start + per_row]:
            title = title if len(title) <= column_width else ("..." + title[3 - column_width :])[:column_width]
            wrapped = [row for line in text.splitlines() for row in textwrap.wrap(line, column_width) or [""]]
            cells.append([title, "-" * len(title), *wrapped])
        height = max(map(len, cells))
        rows = [[column[i] if i < len(column) else "" for column in cells] for i in range(height)]
        blocks.append("\n".join("  ".join(cell.ljust(column_width) for cell in row).rstrip() for row in rows))
    return "\n\n".join(blocks)
