"""Who imports whom: no cycles between files or packages, and nothing heavy where it is not needed."""

import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from conftest import PATIENCE

from positron.cli import MODULES as COMMAND_MODULES
from scripts.import_diagram import graph_of_packages, imported, modules, package_of

MODULES = modules()
FILES = {
    module: {name for name in imported(path, MODULES) if name in MODULES} - {module} for module, path in MODULES.items()
}
PACKAGES = graph_of_packages(MODULES)
STANDARD = {"config", "ranges", "settings"}  # the standard library alone, besides system/


@pytest.mark.parametrize("graph", [FILES, PACKAGES], ids=["files", "packages"])
def test_imports_form_no_cycle(graph):
    TopologicalSorter(graph).prepare()


def test_every_module_that_is_imported_exists():
    """mypy does not tell: it cannot know which libraries have no types, and which names are misspelt."""
    ours = {name for path in MODULES.values() for name in imported(path, MODULES) if name.split(".")[0] == "positron"}
    assert not ours - set(MODULES)


def test_a_cycle_would_be_found():
    broken = {**PACKAGES, "system": {"run"}}
    with pytest.raises(CycleError):
        TopologicalSorter(broken).prepare()


def foreign(path: Path) -> set[str]:
    """Name the top-level packages other than ours that a file imports."""
    return {name.split(".")[0] for name in imported(path, MODULES)} - {"positron"}


def test_lower_packages_know_nothing_of_higher_ones():
    assert not PACKAGES["system"]
    for module in STANDARD:
        assert PACKAGES[module] <= STANDARD | {"system"}
    assert PACKAGES["model"] <= {"config", "system"}
    assert PACKAGES["text"] <= {"config", "system"}
    assert PACKAGES["stories"] <= {"config", "system"}
    assert PACKAGES["rewards"] <= {"config", "stories", "system"}
    assert not PACKAGES["run"] & {"training", "evaluation", "cli", "data", "inference"}
    for package, names in PACKAGES.items():
        assert "cli" not in names or package in (*COMMAND_MODULES, "cli", "api", "__main__"), package
        assert not names & set(COMMAND_MODULES) or package in (*COMMAND_MODULES, "api"), package


@pytest.mark.parametrize("module", sorted(MODULES))
def test_each_library_has_its_place(module):
    libraries, package = foreign(MODULES[module]), package_of(module)
    assert "numpy_ref" not in libraries
    if package not in ("cli", "train"):
        assert "hydra" not in libraries
    if package not in ("training", "train", "distill", "sft", "prefer", "reinforce", "cli", "api"):
        assert "lightning" not in libraries
    if package == "model":
        assert libraries <= {"torch", *sys.stdlib_module_names}
    if package in STANDARD:
        assert libraries <= set(sys.stdlib_module_names)


def loaded_by(code: str) -> set[str]:
    """Run code in a process of its own; return which heavy modules it has loaded."""
    heavy = "torch starlette uvicorn lightning hydra omegaconf datasets wandb matplotlib"
    code += f"\nimport sys; print(*[name for name in {heavy!r}.split() if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "command",
    [
        "generate",
        "chat",
        "look",
        "serve",
        "evaluate",
        "compare",
        "floor",
        "research",
        "scaling",
        "dashboard",
        "preview",
        "cache",
        "bench",
    ],
)
def test_help_loads_nothing_heavy(command):
    code = f"import sys; sys.argv = [{command!r}, '--help']\nimport positron.{command} as command\n"
    assert loaded_by(code + "try:\n    command.main()\nexcept SystemExit:\n    pass\nprint()") == set()


def test_the_list_of_commands_loads_nothing_heavy():
    assert loaded_by("import sys; sys.argv = ['positron', '--help']\nfrom positron.cli import main; main()") == set()


def test_what_uses_a_run_needs_neither_lightning_nor_hydra():
    """In one process, which loads torch once and names the first package that loads more."""
    code = "import sys\n"
    for package in (
        *("text", "stories", "rewards", "run", "evaluation"),
        *("inference", "inspection", "serving", "dashboard"),
    ):
        names = [name for name in MODULES if package_of(name) == package and not name.endswith("__main__")]
        assert names, package
        code += "".join(f"import {name}\n" for name in names)
        code += f"assert not {{'lightning', 'hydra'}} & sys.modules.keys(), {package!r}\n"
    assert not loaded_by(code + "print()") & {"lightning", "hydra"}
