"""Exported folders in Apple's mlx-lm, which reads the layout of transformers; it also runs on the CPU of Linux.

`POSITRON_MLX_PYTHON` is the Python of an environment with mlx-lm: `pip install mlx-lm 'mlx[cpu]'`.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import PROJECT
from test_transformers_versions import models  # noqa: F401  (a fixture)

PYTHON = os.environ.get("POSITRON_MLX_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="POSITRON_MLX_PYTHON names no Python with mlx-lm"),
]
# mlx-lm 0.32 lacks Arcee, ignores the sliding window, and expects other names or settings of GPT-2, StarCoder2 and Apertus
EQUAL = {"llama", "llama_with_biases", "stablelm", "qwen3"}


def test_shapes_of_llama_stablelm_and_qwen3_compute_and_write_in_mlx_what_positron_does(models, capsys):  # noqa: F811
    program = Path(__file__).with_name("with_mlx.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    command = [PYTHON, str(program), *models]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, cwd=PROJECT, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    equal = set()
    for folder, expected in models.items():
        result, name = answer["results"][folder], Path(folder).name
        far = result.get("difference")
        with capsys.disabled():
            print(
                f"mlx-lm {answer['version']} {name:26} {expected['class']:22} {far or result['error'].splitlines()[0]}"
            )
        if far is not None and far < 1e-4:
            equal.add(name)
            for key in ("prompt_ids", "alone", "chat_ids"):
                assert result[key] == expected[key], (name, key)
    assert equal == EQUAL
