"""What pyproject.toml declares, constraints.txt pins and uv.lock locks are the same packages."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
from conftest import PROJECT


def normal(name: str) -> str:
    """Return a package's name as the package index spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


DECLARED = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK_TEXT = (PROJECT / "uv.lock").read_text(encoding="utf-8")
LOCKED: list[dict[str, Any]] = tomllib.loads(LOCK_TEXT)["package"]
PINNED = {
    normal(name): version
    for name, _, version in (
        line.partition("==") for line in (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    )
    if version
}


def requirements(lines: list[str]) -> set[tuple[str, str]]:
    """Name (without extras) and versions of each requirement."""
    found = (re.fullmatch(r"([\w.-]+)(?:\[\w+\])?(.*)", line) for line in lines)
    return {(normal(match[1]), match[2].replace(" ", "")) for match in found if match}


def test_the_lock_file_is_that_of_the_declared_dependencies():
    (project,) = (package for package in LOCKED if package["name"] == "positron")
    locked = {(package["name"], package.get("specifier", "")) for package in project["metadata"]["requires-dist"]}
    extras = [line for lines in DECLARED["optional-dependencies"].values() for line in lines]
    assert locked == requirements([*DECLARED["dependencies"], *extras]) - {("positron", "")}, "run `uv lock`"


def test_the_lock_file_has_the_pinned_versions():
    locked: dict[str, set[str]] = {}
    for package in LOCKED:
        locked.setdefault(package["name"], set()).add(package.get("version", ""))
    assert {name: {version} for name, version in PINNED.items()} == {name: locked.get(name, set()) for name in PINNED}


def test_the_lock_file_names_the_public_package_index_alone():
    assert set(re.findall(r"https?://[^/\"]+", LOCK_TEXT)) == {"https://pypi.org", "https://files.pythonhosted.org"}
    assert {str(package["source"]) for package in LOCKED} == {
        "{'registry': 'https://pypi.org/simple'}",
        "{'editable': '.'}",
    }


@pytest.mark.parametrize("requirement", DECLARED["dependencies"])
def test_each_dependency_has_a_lower_bound(requirement):
    assert re.search(r"[>=]=\d", requirement)
