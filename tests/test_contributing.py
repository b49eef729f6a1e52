"""The documents that a contributor reads name tests and files that exist, and the project describes itself completely."""

from __future__ import annotations

import re
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT

from positron.version import __version__
from scripts.import_diagram import boxes, depths, graph_of_packages, modules, reduced, stale

TEST_FILES = sorted((PROJECT / "tests").rglob("*.py"))
TESTS = {
    name for path in TEST_FILES for name in re.findall(r"^ *def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
}
DOCUMENTS = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
GUIDES = ("CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md", "README.md", "docs/ARCHITECTURE.md")
OWN_FILES = re.compile(r"`((?:positron|numpy_ref|tests|conf|scripts|docs)/[\w./-]*\w)`")
ARCHITECTURE = (PROJECT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
# `name` in `file`, or `name` (`file`)
PLACES = re.findall(r"`([A-Za-z_][\w.]*)`(?: in|,)?\s+\(?`([a-z_]+/[\w/]+\.py)`", ARCHITECTURE)
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
VERSIONS = ("3.11", "3.12", "3.13")


def named_tests(text: str) -> set[str]:
    """Return the names of tests in a document, without those of test files."""
    return set(re.findall(r"\b(test_\w+)\b(?!\.py|\.sh)", text))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_a_document_names_tests_and_files_that_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert named_tests(text) - TESTS == set()
    assert {name for name in OWN_FILES.findall(text) if not (PROJECT / name).exists()} == set()


def test_a_test_or_file_that_does_not_exist_is_found() -> None:
    assert named_tests("`test_nobody_wrote`, tests/test_readme.py") - TESTS == {"test_nobody_wrote"}
    assert OWN_FILES.findall("`positron/nothing.py` and `outputs/first`") == ["positron/nothing.py"]


@pytest.mark.parametrize(("name", "file"), PLACES)
def test_what_the_architecture_places_in_a_file_is_there(name: str, file: str) -> None:
    text = (PROJECT / file).read_text(encoding="utf-8")
    assert all(re.search(rf"\b{part}\b", text) for part in name.split(".")), f"{name} is not in {file}"


def test_the_architecture_places_many_names() -> None:
    assert len(PLACES) >= 20
    assert ("seed_step", "positron/training/module.py") in PLACES


def test_code_refers_to_invariants_that_are_stated_and_guarded() -> None:
    parts = re.split(r"^### Invariant (\d+): .*$", ARCHITECTURE, flags=re.M)
    stated = {int(number): text.split("\n## ")[0] for number, text in zip(parts[1::2], parts[2::2], strict=True)}
    assert list(stated) == list(range(1, len(stated) + 1))
    assert all(named_tests(text) for text in stated.values())
    for path in [*(PROJECT / "positron").rglob("*.py"), *(PROJECT / "numpy_ref").rglob("*.py"), *TEST_FILES]:
        text = path.read_text(encoding="utf-8")
        numbers = {int(number) for number in re.findall(r"(?i)\binvariants? (\d+)", text)}
        assert numbers <= set(stated), path
        assert not numbers or "docs/ARCHITECTURE.md" in text, path


def test_the_import_diagram_is_that_of_the_code() -> None:
    assert stale(boxes(graph_of_packages(modules()))) == [], "run python scripts/import_diagram.py"


def test_an_import_that_the_diagram_lacks_is_found() -> None:
    graph = boxes(graph_of_packages(modules()))
    assert len(stale({**graph, "stories": {"system"}})) == 2


def test_an_arrow_that_follows_from_others_is_left_out_and_boxes_lie_above_their_imports() -> None:
    graph = {"top": {"middle", "bottom"}, "middle": {"bottom"}, "bottom": set()}
    assert reduced(graph) == {"top": {"middle"}, "middle": {"bottom"}, "bottom": set()}
    assert depths(graph) == {"top": 0, "middle": 1, "bottom": 2}


@pytest.mark.parametrize("document", GUIDES)
def test_links_between_documents_lead_to_files(document: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (PROJECT / document).read_text(encoding="utf-8"))
    assert [link for link in links if not (PROJECT / document).parent.joinpath(link).exists()] == []


def test_the_changelog_and_the_citation_know_the_version() -> None:
    changelog = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.search(rf"^## \[{re.escape(__version__)}\] - (\d{{4}}-\d\d-\d\d)$", changelog, re.M)
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert released is not None
    assert str(citation["version"]) == __version__
    assert str(citation["date-released"]) == released[1]


def test_metadata_and_ci_cover_the_same_versions_of_python() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    prefix = "Programming Language :: Python :: "
    classified = {line.removeprefix(prefix) for line in project["classifiers"] if line.startswith(prefix + "3.")}
    ci = yaml.safe_load((PROJECT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert classified == set(VERSIONS)
    assert set(ci["jobs"]["tests"]["strategy"]["matrix"]["python"]) == set(VERSIONS)
    assert project["requires-python"] == ">=3.11,<3.14"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_make_target_of_a_workflow_exists(workflow: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.M))
    used = set(re.findall(r"\bmake ([\w-]+)", workflow.read_text(encoding="utf-8")))
    assert used
    assert used <= targets


def test_the_wheel_tells_type_checkers_that_it_is_typed(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(PROJECT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        assert {"positron/py.typed", "numpy_ref/py.typed"} <= set(archive.namelist())
        (metadata,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        assert "Author: Positron contributors" in archive.read(metadata).decode("utf-8")
