"""Read and write the texts that a run samples during training: `samples.jsonl`, and `samples.md` rendered from it.

Runs of older versions have only `samples.md`. This file is read, and converted to `samples.jsonl` when the run continues.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from positron.run.lines import DamagedLine, append, read_lines, to_line, write_lines
from positron.run.paths import RunPaths
from positron.system.disk import is_number, read_text, whole_file

_MARKUP = re.compile(
    r"(?m)^( {0,3}\\*)(?=#|[=-]+[ \t]*$|```|~~~|<)"
)  # start of a heading, code block or HTML in Markdown
_NUMBER = r"(-?\d{1,20}(?:\.\d{1,20})?|nan|inf)"
_OLD_HEAD = re.compile(rf"(?m)^## Step (\d{{1,15}}) · loss {_NUMBER}(?: · {_NUMBER} validation bits per byte)?\n\n")
_OLD_ESCAPED = re.compile(r"(?m)^\\(\\*)## ")


class Sample(NamedTuple):
    """Hold a text sampled during training, with the model's scores at that step."""

    step: int
    loss: float  # training loss of the step, in nats per token, or per pair in preference tuning; NaN if the step was skipped
    bpb: float | None  # validation bits per byte; None if not measured at this step
    text: str  # including the prompt

    @property
    def head(self) -> str:
        """Return the heading of the sample, such as `Step 40 · loss 1.203`.

        If the sample has validation bits per byte, the heading ends in them: ` · 1.0123 validation bits per byte`.
        """
        scores = f"loss {self.loss:.3f}"
        if self.bpb is not None:
            scores += f" · {self.bpb:.4f} validation bits per byte"
        return f"Step {self.step} · {scores}"

    def markdown(self) -> str:
        """Return the sample as a section of `samples.md`; headings, code and HTML in the text are escaped."""
        text = _MARKUP.sub(r"\1\\", self.text)
        return f"## {self.head}\n\n{text}\n\n"


def append_sample(run: RunPaths, sample: Sample) -> None:
    """Append a sample to `samples.jsonl` and `samples.md`. Raises UserError if they cannot be written."""
    readable = sample.text.encode("utf-8", errors="backslashreplace").decode("utf-8")
    sample = sample._replace(text=readable)
    append(run.samples_path, to_line(sample._asdict()).text.decode("utf-8"))
    append(run.samples_page, sample.markdown())


def read_samples(run: RunPaths) -> list[Sample]:
    """Return the samples of a run in the order of its steps. Raises UserError for a damaged line."""
    if not has_lines(run) and run.samples_page.exists():
        return _samples_of_page(read_text(run.samples_page))
    return [_sample_of(line.values) for line in read_lines(run.samples_path, check_sample)]


def cut_samples(run: RunPaths, step: int) -> None:
    """Remove the samples of steps after `step` from `samples.jsonl`, and write `samples.md` again from the other samples.

    A sample is a text that the run sampled during training. Raises UserError if a line of `samples.jsonl` is damaged; no file
    is changed then.
    """
    if has_lines(run):
        lines = read_lines(run.samples_path, check_sample)
    elif run.samples_page.exists():  # a run of an older version
        lines = [to_line(sample._asdict()) for sample in read_samples(run)]
    else:
        return
    kept_lines = [line for line in lines if line.values["step"] <= step]
    write_lines(run.samples_path, kept_lines)
    _render(run, (_sample_of(line.values) for line in kept_lines))


def has_lines(run: RunPaths) -> bool:
    """Tell whether the run has a `samples.jsonl`; runs of older versions have only `samples.md`."""
    return run.samples_path.exists() or run.samples_path.is_symlink()


def check_sample(values: dict[str, Any]) -> None:
    """Raise DamagedLine if `values`, parsed from a line of samples.jsonl, lack a field of a sample or have a wrong type."""
    for key in ("loss", "bpb"):
        if key not in values or (values[key] is not None and not is_number(values[key])):
            raise DamagedLine(f"its {key} is not a finite number")
    if not isinstance(values.get("text"), str):
        raise DamagedLine("its text is missing")
    try:
        values["text"].encode("utf-8")
    except UnicodeEncodeError:
        raise DamagedLine("its text is not Unicode") from None


def _sample_of(values: dict[str, Any]) -> Sample:
    loss, bpb = values["loss"], values["bpb"]
    return Sample(values["step"], math.nan if loss is None else loss, bpb, values["text"])


def _render(run: RunPaths, samples: Iterable[Sample]) -> None:
    with whole_file(run.samples_page) as file:
        file.writelines(sample.markdown().encode("utf-8") for sample in samples)


def _samples_of_page(page: str) -> list[Sample]:
    """Return the samples in `page`, the content of a `samples.md` that an older version of Positron wrote.

    The older version put a backslash before a line of a sample that looked like a heading. These backslashes are removed.
    """
    parts = _OLD_HEAD.split(page)[1:]
    samples: list[Sample] = []
    for step, loss, bpb, text in zip(*[iter(parts)] * 4, strict=True):
        sample = Sample(int(step), float(loss), float(bpb) if bpb else None, _OLD_ESCAPED.sub(r"\1## ", text.strip()))
        if not samples or sample.step > samples[-1].step:
            samples.append(sample)
    return samples
