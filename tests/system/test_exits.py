"""How errors become one line and an exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_python_without_the_packages_is_named_with_the_remedy():
    """-S hides the installed packages, as a Python does in which Positron is not installed."""
    result = subprocess.run(
        [sys.executable, "-S", "-m", "positron.train"], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60
    )
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert f"{sys.executable} has no module " in line
    assert "activate the environment" in line
