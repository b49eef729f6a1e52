"""What a run records: metrics.jsonl, samples.md, and the dashboards that the user asked for."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from positron.evaluation.plots import attention_maps
from positron.inference.engine import Engine
from positron.model.gpt import GPT
from positron.model.probes import attention_probabilities
from positron.run.metrics import metrics_lines
from positron.run.samples import Sample
from positron.system.console import printable
from positron.system.disk import append_text, make_folder, read_bytes, refuse_links, whole_file
from positron.system.errors import UserError
from positron.text.tokenizer import Tokenizer
from positron.training.callbacks import Clock
from positron.training.device import peak_memory
from positron.training.loggers import ATTENTION, Dashboard
from positron.training.module import PretrainModule
from positron.training.timing import SpeedFacts

MAP_TOKENS = 48  # of the prompt, in the pictures of its attention


def cut_after(folder: Path, step: int) -> None:
    """Drop what was written after the checkpoint that training continues from: it will be written again.

    Raises UserError before anything is changed if metrics.jsonl is damaged: its history would be lost.
    """
    lines = metrics_lines(folder / "metrics.jsonl")
    if lines:
        with whole_file(folder / "metrics.jsonl") as file:
            file.writelines(line for row, line in lines if row["step"] <= step)
    path = folder / "samples.md"
    if path.exists():
        parts = re.split(rb"(?m)^(?=## Step )", read_bytes(path))
        kept = [part for part in parts if not (m := re.match(rb"## Step (\d{1,15})", part)) or int(m[1]) <= step]
        with whole_file(path) as file:
            file.writelines(kept)
    if (folder / ATTENTION).parent.is_dir():
        refuse_links((folder / ATTENTION).parent, folder)
    for picture in folder.glob(ATTENTION.format("*")):
        number = picture.stem.removeprefix("step-")
        if re.fullmatch(r"\d{1,15}", number) and int(number) > step:
            picture.unlink()


def append(path: Path, text: str) -> None:
    try:
        append_text(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


class Journal(L.Callback):
    """One line of metrics.jsonl per logged, monitored or validated step, with strictly increasing steps."""

    def __init__(
        self, folder: Path, clock: Clock, dashboards: list[Dashboard], *, intervals: set[int], speed: SpeedFacts
    ) -> None:
        """Log at every multiple of one of `intervals`, in steps, which are the same on all ranks."""
        self.intervals, self.speed = intervals, speed
        self.path, self.clock, self.dashboards = folder / "metrics.jsonl", clock, dashboards
        self._since = (0, 0.0)  # steps and seconds at the last row

    def on_train_batch_end(self, trainer: L.Trainer, module: PretrainModule, *_: Any) -> None:  # type: ignore[override]
        step = trainer.global_step
        due = any(step % interval == 0 for interval in self.intervals)
        if not due and "val/bpb" not in module.metrics and not trainer.should_stop:
            return
        loss = module.loss if trainer.world_size == 1 else trainer.strategy.reduce(module.loss, reduce_op="mean")
        if not trainer.is_global_zero:
            return
        steps, seconds = self.clock.steps - self._since[0], self.clock.step_s - self._since[1]
        self._since = (self.clock.steps, self.clock.step_s)
        tokens_per_s = steps * self.speed.batch_tokens / seconds
        if "val/bpb" in module.metrics:
            self.speed.peak.look()
        row = {
            "step": step,
            "tokens": step * self.speed.batch_tokens,
            "time_s": round(self.clock.time_s, 3),
            "train/loss": loss.item(),
            "train/lr": module.lr(step),
            "train/grad_norm": module.grad_norm.item(),
            "train/skipped_steps": int(module.bad_steps),
            "speed/tokens_per_s": round(tokens_per_s, 1),
            "speed/mfu": round(self.speed.mfu(tokens_per_s), 4),
            "memory/peak_gb": round(peak_memory(module.device) / 1e9, 3),
            **module.metrics,
        }
        # JSON has no NaN or infinity
        finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()}
        append(self.path, json.dumps(finite) + "\n")
        for dashboard in self.dashboards:
            dashboard.log(row, step)


class Samples(L.Callback):
    """The same prompt at milestones, so that one can read a model learn."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        dashboards: list[Dashboard],
        say: Callable[[str], None],
        *,
        every: int,
        prompt: str,
        ids: list[int],
        stop_ids: list[int],
        tokens: int,
    ) -> None:
        """`prompt` as it is shown, `ids` as the model reads it."""
        self.path, self.tokenizer, self.dashboards, self.say = folder / "samples.md", tokenizer, dashboards, say
        self.every, self.tokens = every, tokens
        self.prompt, self.ids, self.stop_ids = prompt, ids, stop_ids

    def on_train_batch_end(self, trainer: L.Trainer, module: PretrainModule, *_: Any) -> None:  # type: ignore[override]
        step = trainer.global_step
        sharded = hasattr(trainer.strategy.model, "clip_grad_norm_")  # FSDP: no rank has all weights
        if (step % self.every and not trainer.should_stop) or not trainer.is_global_zero or sharded:
            return
        module.eval()
        engine = Engine(module.model, self.tokenizer)
        try:
            new = engine.stream(self.ids, max_tokens=self.tokens, seed=step, stop_ids=self.stop_ids)
            text = self.prompt + "".join(new)
        except UserError as broken:  # whether the run goes on is not for its samples to decide
            self.say(f"step {step} writes nothing: {broken}")
            return
        finally:
            module.train()
        bpb = module.metrics.get("val/bpb")
        sample = Sample(step, round(module.loss.item(), 3), None if bpb is None else round(bpb, 4), text.strip())
        append(self.path, sample.markdown())
        if self.dashboards:
            self._draw_attention(module.model, step)
        if not trainer.should_stop:  # the last one is shown whole, at the end
            self.say(f"step {step} writes: {printable(' '.join(text.split())[:160])} ...")
        for dashboard in self.dashboards:
            dashboard.sample(sample)

    def _draw_attention(self, model: GPT, step: int) -> None:
        """Of the prompt, which stays the same through the run, so that its pictures compare."""
        ids = self.ids[: min(MAP_TOKENS, model.config.context_length)]
        layers = attention_probabilities(model, torch.tensor([ids], device=model.wte.weight.device))
        shown = " ".join(self.tokenizer.decode(ids).split())
        picture = attention_maps([layer[0].float().cpu().numpy() for layer in layers], f"step {step}: {shown[:60]}")
        path = self.path.parent / ATTENTION.format(f"{step:06d}")
        make_folder(path.parent, self.path.parent)
        with whole_file(path, self.path.parent) as file:
            file.write(picture)
