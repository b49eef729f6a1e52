"""Training in two processes."""

import subprocess
import sys

from conftest import FAST, PATIENCE

TWO = ("device=cpu", "device.devices=2", "device.strategy=ddp")


def run(folder, *arguments):
    command = [sys.executable, "-m", "positron.train", "model=debug", *FAST, "train.log_every=1", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    return result
