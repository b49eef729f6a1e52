"""Show the imports between the packages of positron: draw docs/imports.svg, and write the table of docs/ARCHITECTURE.md.

    python scripts/import_diagram.py           # write both
    python scripts/import_diagram.py --check   # exit code 1 if one of the two files is not up to date

The script reads the import statements of every file, including those inside functions. All commands share a box, and
config.py, settings.py and ranges.py share a box. A box is above every box that it imports. Indirect imports are not drawn:
if A imports B and B imports C, the arrow from A to C is left out. The table contains all imports.
"""

from __future__ import annotations

import argparse
import ast
import functools
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from positron.cli import COMMANDS  # noqa: E402

DIAGRAM = ROOT / "docs" / "imports.svg"
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
BEGIN, END = "<!-- begin: python scripts/import_diagram.py -->", "<!-- end -->"
BOXES = {  # modules at the top level that share a box
    **dict.fromkeys(("config", "settings", "ranges"), "config"),
    **dict.fromkeys(COMMANDS, "commands"),
}
LEFT_OUT = {"positron", "__main__", "version"}  # modules that only import others, or that everything imports
WIDTH, ROW, BOX_HEIGHT, LETTER = 860, 92, 34, 8.2  # pixels

Graph = dict[str, set[str]]


def modules(package: Path = ROOT / "positron") -> dict[str, Path]:
    """Return a dict from the full name of each module to its file."""
    return {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(package.rglob("*.py"))
    }


@functools.cache
def import_statements(path: Path) -> list[tuple[str, str]]:
    """Return (module, name) for each import of a file: ("a.b", "c") for `from a.b import c`, ("a.b", "") for `import a.b`."""
    statements: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            statements += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            statements += [(node.module, alias.name) for alias in node.names]
    return statements


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the full names of all imports of a file, including imports inside functions."""
    for module, name in import_statements(path):
        full_name = f"{module}.{name}" if name else module
        yield full_name if full_name in known else module


def package_of(module: str) -> str:
    """Return the package of a module: `run` for `positron.run.load`. A module at the top level is its own package."""
    return module.split(".")[1] if "." in module else module


def graph_of_packages(known: dict[str, Path]) -> Graph:
    """Return a dict from each package to the other packages that it imports."""
    graph: Graph = {}
    for module, path in known.items():
        names = {name for name in imported(path, known) if name in known}
        graph.setdefault(package_of(module), set()).update(package_of(name) for name in names)
    return {package: names - {package} for package, names in graph.items()}


def boxes(graph: Graph) -> Graph:
    """Merge the packages that share a box, and leave out the modules of LEFT_OUT."""
    merged: Graph = {}
    for package, names in graph.items():
        if package not in LEFT_OUT:
            box = BOXES.get(package, package)
            merged.setdefault(box, set()).update(BOXES.get(name, name) for name in names - LEFT_OUT)
    return {box: names - {box} for box, names in merged.items()}


def reduced(graph: Graph) -> Graph:
    """Remove each arrow from A to C if arrows lead from A to C over other boxes."""
    return {
        box: {name for name in names if not any(name in _below(graph, n) for n in names)}
        for box, names in graph.items()
    }


def _below(graph: Graph, box: str) -> set[str]:
    return graph[box].union(*(_below(graph, name) for name in graph[box]))


def depths(graph: Graph) -> dict[str, int]:
    """Return the row of each box, counted from 0 at the top: a box is below every box that imports it."""
    above: Graph = {box: {name for name in graph if box in graph[name]} for box in graph}

    def depth(box: str) -> int:
        return 1 + max((depth(name) for name in above[box]), default=-1)

    return {box: depth(box) for box in graph}


def levels(graph: Graph) -> tuple[list[list[str]], dict[tuple[str, str], list[str]]]:
    """Return the names in each row, from the top, and a dict from each arrow (from, to) to the names along its path.

    A name is a box, or the crossing of an arrow through a row. The crossing has its own position in the row, so that the arrow
    does not run behind a box. The names of a row are sorted so that a box is near the boxes that import it.
    """
    depth = depths(graph)
    ways = {
        (box, name): [box, *(f"{box} {name} {row}" for row in range(depth[box] + 1, depth[name])), name]
        for box in sorted(graph)
        for name in sorted(graph[box])
    }
    depth |= {place: depth[way[0]] + i for way in ways.values() for i, place in enumerate(way)}
    rows: list[list[str]] = [[] for _ in range(1 + max(depth.values()))]
    for place in sorted(depth):
        rows[depth[place]].append(place)
    above: Graph = {place: {way[way.index(place) - 1] for way in ways.values() if place in way[1:]} for place in depth}
    x: dict[str, float] = {}
    for row in rows:
        row.sort(key=lambda place: (sum(x[name] for name in above[place]) / max(1, len(above[place])), place))
        x |= {place: (i + 1) / (len(row) + 1) for i, place in enumerate(row)}
    return rows, ways


def drawing(graph: Graph) -> str:
    """Draw the graph as SVG."""
    rows, ways = levels(reduced(graph))
    height = ROW * len(rows)
    center = {
        place: (WIDTH * (i + 1) / (len(row) + 1), ROW * (level + 0.5))
        for level, row in enumerate(rows)
        for i, place in enumerate(row)
    }
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="14">',
        "<title>Imports between the packages of positron</title>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#5b6b82"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    for way in ways.values():
        places = [center[place] for place in way]
        y = [places[0][1] + BOX_HEIGHT / 2, *(y for _, y in places[1:-1]), places[-1][1] - BOX_HEIGHT / 2]
        path = f"M{places[0][0]:.0f} {y[0]:.0f}"
        for i in range(1, len(way)):
            (x1, _), (x2, _), bend = places[i - 1], places[i], (y[i] - y[i - 1]) / 2
            path += f"C{x1:.0f} {y[i - 1] + bend:.0f} {x2:.0f} {y[i] - bend:.0f} {x2:.0f} {y[i]:.0f}"
        lines.append(f'<path d="{path}" fill="none" stroke="#5b6b82" marker-end="url(#head)"/>')
    for box in sorted(graph):
        (x, middle), width = center[box], LETTER * len(box) + 24
        lines.append(
            f'<rect x="{x - width / 2:.0f}" y="{middle - BOX_HEIGHT / 2:.0f}" width="{width:.0f}" height="{BOX_HEIGHT}" '
            'rx="6" fill="#eef2f8" stroke="#33415c"/>'
        )
        lines.append(f'<text x="{x:.0f}" y="{middle + 5:.0f}" text-anchor="middle" fill="#101828">{escape(box)}</text>')
    return "\n".join([*lines, "</svg>\n"])


def table(graph: Graph) -> str:
    """Return a Markdown table of the packages and their imports, in the order of the rows of the drawing."""
    depth = depths(graph)
    order = sorted(graph, key=lambda box: (depth[box], box))
    rows = [
        f"| `{box}` | {', '.join(f'`{name}`' for name in order if name in graph[box]) or 'nothing'} |" for box in order
    ]
    return "\n".join(["| package | imports |", "|---|---|", *rows])


def page(text: str, graph: Graph) -> str:
    """Return the text of the page, with the new table between BEGIN and END."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(graph)}\n{END}{after}"


def stale(graph: Graph) -> list[Path]:
    """Return the files that are not up to date."""
    text = PAGE.read_text(encoding="utf-8")
    contents = {DIAGRAM: drawing(graph), PAGE: page(text, graph)}
    return [path for path, new in contents.items() if not path.exists() or path.read_text(encoding="utf-8") != new]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file is not up to date")
    options = parser.parse_args()
    graph = boxes(graph_of_packages(modules()))
    if options.check:
        names = [str(path.relative_to(ROOT)) for path in stale(graph)]
        sys.exit(f"not up to date: {', '.join(names)}; run python scripts/import_diagram.py" if names else 0)
    DIAGRAM.write_text(drawing(graph), encoding="utf-8", newline="\n")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), graph), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
