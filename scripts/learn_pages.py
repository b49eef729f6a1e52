"""Render the chapters of docs/learn: insert computed numbers, figures and source code.

A chapter is two files with one name, `docs/learn/NN_name.md` and `docs/learn/NN_name.py`. The Python file defines

    example() -> dict[str, Value]           every number of the page, computed by numpy_ref
    exercises() -> list[dict[str, Value]]   the numbers of the three answers, one dictionary each
    figure() -> matplotlib.figure.Figure    the drawing, in the colours of this module

and the page names what it shows in double braces:

    {{ name }}                      a value; in a formula ($...$) an array becomes a matrix
    {{ name:.3f }}                  a value in a Python format; without a format, it has at most four decimals
    {{ name:frac }}                 a value as a fraction, in a formula: 1/3 instead of 0.3333
    {{ figure: what it shows }}     the drawing as SVG; the text describes it for screen readers
    {{ source: module.function }}   a link to the line of the repository and to the API reference
    {{ code: module.function }}     the current source code of the function

An unknown name, a value that the page does not show, and a function that does not exist are errors, so that a page cannot
contradict the code. MkDocs calls `on_files` when it builds the site (`hooks` of mkdocs.yml), before scripts/docs_pages.py
resolves the links.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
from matplotlib import rcsetup
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parent.parent
LEARN = ROOT / "docs" / "learn"
if str(ROOT) not in sys.path:  # MkDocs runs this file without the repository on its path
    sys.path.insert(0, str(ROOT))

Value = str | int | float | np.ndarray
PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*(?::\s*(.*?))?\s*\}\}", re.DOTALL)
MATH = re.compile(r"(\$\$.*?\$\$|\$[^$\n]+\$)", re.DOTALL)
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

INK = "#0d0e0f"  # on the page, this colour of a figure is replaced by the colour of the text
# These colours are legible on white and on black.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#3f8fd2", "#e0803a", "#2fa67a", "#b06ac4", "#8a8f98"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": False,
    "axes.labelcolor": INK,
    "axes.prop_cycle": rcsetup.cycler(color=[BLUE, ORANGE, GREEN, PURPLE, GREY]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.facecolor": "none",
    "font.size": 10,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.facecolor": "none",
    "svg.fonttype": "path",
    "svg.hashsalt": "learn",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


class PageError(Exception):
    """Report that a page contradicts its Python file or the source code."""


@dataclass(frozen=True)
class Chapter:
    """Hold a page and the module that computes its numbers."""

    page: Path
    module: ModuleType

    @property
    def markdown(self) -> str:
        """Return the page as it was written."""
        return self.page.read_text(encoding="utf-8")

    def values(self) -> dict[str, Value]:
        """Compute every number that the page may show, by name."""
        values: dict[str, Value] = dict(self.module.example())
        for answer in self.module.exercises():
            twice = values.keys() & answer.keys()
            if twice:
                raise PageError(f"{self.page.name}: {', '.join(sorted(twice))} is defined twice: rename one of them")
            values |= answer
        return values

    def draw(self) -> str:
        """Draw the chapter's figure as SVG."""
        with matplotlib.rc_context(STYLE):
            out = io.StringIO()
            self.module.figure().savefig(
                out, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.05
            )
        return out.getvalue()


def chapters() -> list[Chapter]:
    """Load all chapters in reading order."""
    return [load(page) for page in sorted(LEARN.glob("[0-9][0-9]_*.md"))]


def load(page: Path) -> Chapter:
    """Load the Python file of a page, which has the same name and the suffix .py."""
    name = f"learn_{page.stem}"
    spec = importlib.util.spec_from_file_location(name, page.with_suffix(".py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Chapter(page, module)


def render(chapter: Chapter) -> str:
    """Return the page's Markdown with all placeholders replaced.

    Raises PageError if a placeholder is wrong, or if the page does not show a value.
    """
    values = chapter.values()
    used: set[str] = set()

    def replace(text: str, in_formula: bool) -> str:
        def one(match: re.Match[str]) -> str:
            name, rest = match[1], match[2] or ""
            match name:
                case "figure":
                    used.add(name)
                    return inline(chapter.draw(), rest)
                case "source":
                    return source_link(rest)
                case "code":
                    return f"```python\n{find(rest).code}\n```"
            if name not in values:
                raise PageError(f"{chapter.page.name}: {{{{ {name} }}}} is not defined by {chapter.page.stem}.py")
            used.add(name)
            try:
                return formatted(values[name], rest, in_formula)
            except ValueError as error:
                raise PageError(f"{chapter.page.name}: {{{{ {name} }}}}: {error}") from error

        return PLACEHOLDER.sub(one, text)

    parts = MATH.split(chapter.markdown)  # parts with an odd index are formulas
    text = "".join(replace(part, i % 2 == 1) for i, part in enumerate(parts))
    unused = (values.keys() | {"figure"}) - used
    if unused:
        raise PageError(f"{chapter.page.name} does not show {', '.join(sorted(unused))}")
    python = chapter.page.with_suffix(".py").name
    return (
        f"{text}\n---\n\n*[`docs/learn/{python}`]({python}) computes the numbers and draws the figure of this page.*\n"
    )


def formatted(value: Value, spec: str = "", in_formula: bool = False) -> str:
    """Return a value as text, or as TeX in a formula. Raises ValueError for an array outside of a formula."""
    if isinstance(value, str):
        return value
    if isinstance(value, np.ndarray) and value.ndim:
        if not in_formula or value.ndim > 2:
            raise ValueError("an array can be shown only in a formula, and only with one or two axes")
        rows = [" & ".join(formatted(number, spec, True) for number in row) for row in np.atleast_2d(value)]
        between = r" \\[0.35em] " if spec == "frac" else r" \\ "
        return r"\begin{pmatrix}" + between.join(rows) + r"\end{pmatrix}"
    number = value.item() if isinstance(value, np.ndarray | np.generic) else value
    if spec == "frac":
        return _fraction(number)
    text = format(number, spec) if spec else _short(number)
    if not in_formula:
        text = text.replace("-", "−")
    text = text.replace("inf", r"\infty" if in_formula else "∞")
    if "nan" in text:
        text = text.replace("nan", r"\text{NaN}" if in_formula else "NaN")
    mantissa, exponent, power = text.partition("e")
    if exponent:
        power = str(int(power.replace("−", "-")))
        text = rf"{mantissa} \times 10^{{{power}}}" if in_formula else f"{mantissa} × 10{power.translate(SUPERSCRIPTS)}"
    return text.replace(",", "{,}") if in_formula else text


def _short(number: float) -> str:
    """Return an integer without decimals, and another number with at most four decimals.

    Raises ValueError if a number that is not 0 would become 0.
    """
    if isinstance(number, int):
        return f"{number:,}" if abs(number) >= 10_000 else str(number)
    text = f"{number:.4f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    if float(text) == 0:
        if abs(number) > 1e-12:
            raise ValueError(f"{number} is too small for four decimals: give a format such as .2e")
        text = "0"
    return text


def _fraction(number: float) -> str:
    """Return the number as a fraction in TeX. Raises ValueError if no denominator up to 1,000 gives the number."""
    exact = Fraction(number).limit_denominator(1000)
    if abs(float(exact) - number) > 1e-9:
        raise ValueError(f"{number} is not a simple fraction (denominator up to 1,000): give another format")
    sign = "-" if exact < 0 else ""
    whole = exact.denominator == 1
    return str(exact.numerator) if whole else rf"{sign}\tfrac{{{abs(exact.numerator)}}}{{{exact.denominator}}}"


def inline(text: str, description: str) -> str:
    """Return an SVG drawing as an HTML figure in which lines and text have the colour of the page's text."""
    if not description:
        raise PageError("a figure needs a description: {{ figure: what it shows }}")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', _svg_tag, text, count=1)
    text = text.replace(INK, "currentColor").replace("\n", " ")
    label = description.replace("&", "&amp;").replace('"', "&quot;")
    return f'<figure class="learn-figure" role="img" aria-label="{label}">{text}</figure>'


def _svg_tag(match: re.Match[str]) -> str:
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    size = f"width:{float(match[1]) * 4 / 3:.0f}px;max-width:100%;height:auto"
    return f'<svg {names} viewBox="0 0 {match[1]} {match[2]}" style="{size}" aria-hidden="true">'


def panels(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Any]]:
    """Return a figure of `width` x `height` inches and a list of its axes, in `columns` columns."""
    drawing = Figure(figsize=(width, height), layout="constrained")
    return drawing, list(drawing.subplots(1, columns, squeeze=False, **options)[0])


@dataclass(frozen=True)
class Definition:
    """Hold the definition of a function or class: its file relative to the repository, its first line, and its code."""

    path: str
    line: int
    code: str


def find(dotted: str) -> Definition:
    """Find a function or class, such as numpy_ref.linear.linear_forward. Raises PageError if it does not exist."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        for path in (ROOT.joinpath(*parts[:length]).with_suffix(".py"), ROOT.joinpath(*parts[:length], "__init__.py")):
            if path.is_file():
                return _find_in(path, parts[length:], dotted)
    raise PageError(f"{dotted} is not in this repository: check its spelling")


def _find_in(path: Path, names: list[str], dotted: str) -> Definition:
    text = path.read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for name in names:
        inside = [child for child in ast.iter_child_nodes(node) if getattr(child, "name", None) == name]
        if not inside:
            raise PageError(f"{dotted} does not exist in {path.relative_to(ROOT)}: check its spelling")
        node = inside[0]
    first, last = getattr(node, "lineno", 1), getattr(node, "end_lineno", 1)
    lines = text.splitlines()[first - 1 : last]
    indent = len(lines[0]) - len(lines[0].lstrip())
    return Definition(path.relative_to(ROOT).as_posix(), first, "\n".join(line[indent:] for line in lines))


def source_link(dotted: str) -> str:
    """Return Markdown that links a function to its line in the repository and, in numpy_ref, to the API reference."""
    definition = find(dotted)
    name = dotted.removeprefix(definition.path.removesuffix(".py").replace("/", ".")).lstrip(".")
    link = f"[`{definition.path}: {name}`](../../{definition.path}#L{definition.line})"
    return f"{link} ([API][{dotted}])" if dotted.startswith("numpy_ref.") else link


def on_files(files: Any, config: Any) -> Any:
    """Render the chapters (a hook of MkDocs)."""
    for chapter in chapters():
        files.get_file_from_path(f"learn/{chapter.page.name}").content_string = render(chapter)
    return files
