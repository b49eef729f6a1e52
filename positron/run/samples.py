"""samples.md: what a run wrote at its milestones, for people to read and for programs to read back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from positron.system.disk import read_text

_NUMBER = r"(-?\d{1,20}(?:\.\d{1,20})?|nan|inf)"
_HEAD = re.compile(rf"(?m)^## Step (\d{{1,15}}) · loss {_NUMBER}(?: · {_NUMBER} validation bits per byte)?\n\n")
_FORGED, _ESCAPED = re.compile(r"(?m)^(\\*)## "), re.compile(r"(?m)^\\(\\*)## ")  # one backslash more, one less


class Sample(NamedTuple):
    step: int
    loss: float  # of the training step, in nats per token
    bpb: float | None  # of the validation text, where it was measured at this step
    text: str  # with the prompt that it begins with

    def markdown(self) -> str:
        """Return its part of samples.md; what the model writes cannot pass for the head of another sample."""
        scores = f"loss {self.loss:.3f}"
        if self.bpb is not None:
            scores += f" · {self.bpb:.4f} validation bits per byte"
        escaped = _FORGED.sub(r"\\\1## ", self.text)
        return f"## Step {self.step} · {scores}\n\n{escaped}\n\n"


def read_samples(path: Path) -> list[Sample]:
    """Return the samples of a samples.md in the order of its steps; none where the file does not exist."""
    if not path.exists():
        return []
    parts = _HEAD.split(read_text(path))[1:]
    heads = zip(*[iter(parts)] * 4, strict=True)
    return [
        Sample(int(step), float(loss), float(bpb) if bpb else None, _ESCAPED.sub(r"\1## ", text.strip()))
        for step, loss, bpb, text in heads
    ]
