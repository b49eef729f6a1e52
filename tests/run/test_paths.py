"""The names of a run's files stand in one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import PROJECT

from positron.run import paths
from positron.run.paths import RunPaths

PACKAGE = PROJECT / "positron"
OTHERS = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "run" / "paths.py"
    and path.parent != PACKAGE / "interop"  # other programs have a config.json, too
]
PLACES = [getattr(RunPaths(Path()), name) for name, kind in vars(RunPaths).items() if isinstance(kind, property)]
FILES = {path.name for path in PLACES if path.suffix}
FOLDERS = {path.name for path in PLACES if not path.suffix} - {paths.LOCK}  # corpora and sweeps have locks too


def spelled(code: str, *, folders: bool) -> Iterator[str]:
    """Yield the file names, and the folder names joined to a path, that code spells itself."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split("/")[-1] in FILES:
            yield node.value
        if folders and isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            right = node.right
            if isinstance(right, ast.Constant) and right.value in FOLDERS:
                yield str(right.value)


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_spells_the_name_of_a_file_of_a_run(path):
    is_about_runs = path.relative_to(PACKAGE).parts[0] != "data"  # a corpus has a folder tokenizer too
    assert not list(spelled(path.read_text(encoding="utf-8"), folders=is_about_runs))


def test_a_name_that_is_spelled_elsewhere_would_be_found():
    code = 'a = folder / "metrics.jsonl"\nb = folder.glob("*/job.json")\nc = run.folder / "checkpoints"'
    assert sorted(spelled(code, folders=True)) == ["*/job.json", "checkpoints", "metrics.jsonl"]


def test_two_things_of_a_run_never_share_a_path():
    assert len(set(PLACES)) == len(PLACES)
    constants = [value for name, value in vars(paths).items() if name.isupper()]
    assert len(set(constants)) == len(constants)
    assert RunPaths(Path("r")).attention_picture(40) == Path("r/attention/step-000040.png")
