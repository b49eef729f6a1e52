"""What `make train` promises: stories within 8 % of the information that the corpus holds, and never below it."""

import json

import pytest
from conftest import CommandProcess


@pytest.mark.slow
def test_quickstart_comes_within_8_percent_of_the_floor(tmp_path):
    result = CommandProcess("train", ("experiment=quickstart",), tmp_path, "", {}).wait(timeout=1800)
    assert result.code == 0, result.err
    facts = json.loads((tmp_path / "outputs" / "quickstart" / "run.json").read_text())
    assert facts["floor_bpb"] < facts["val/bpb"] < 1.08 * facts["floor_bpb"]
    assert "sees the future" not in result.err
