"""Generate sample texts while a run trains."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch

from positron.evaluation.plots import attention_maps
from positron.inference.engine import Engine
from positron.model.gpt import GPT
from positron.model.probes import attention_probabilities
from positron.run.paths import RunPaths
from positron.run.samples import Sample, append_sample
from positron.system.console import printable
from positron.system.disk import make_folder, whole_file
from positron.system.errors import UserError
from positron.text.tokenizer import Tokenizer
from positron.training.module import TrainingModule
from positron.training.objective.base import Prompt
from positron.training.sharding import whole_model
from positron.training.trackers.tracker import Tracker

logger = logging.getLogger(__name__)

MAP_TOKENS = 48  # a picture of the attention shows at most this number of tokens of the prompt


class Samples(L.Callback):
    """Generate a text of at most `tokens` tokens every `every` steps.

    All these samples continue the same prompt, so that they show how the model improves.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        trackers: list[Tracker],
        *,
        every: int,
        tokens: int,
        prompt: Prompt,
    ) -> None:
        self.run, self.tokenizer, self.trackers = RunPaths(folder), tokenizer, trackers
        self.every, self.tokens = every, tokens
        self.prompt = prompt

    def on_train_batch_end(self, trainer: L.Trainer, module: TrainingModule, *_: Any) -> None:  # type: ignore[override]
        """Generate and record a sample if the step is a multiple of `every` or the last one."""
        if trainer.global_step % self.every == 0 or trainer.should_stop:
            with module.average.in_use():
                self._sample(trainer, module)

    def _sample(self, trainer: L.Trainer, module: TrainingModule) -> None:
        step = trainer.global_step
        model = whole_model(module.model)  # all processes must call it
        if not trainer.is_global_zero:
            return
        module.eval()
        engine = Engine(model, self.tokenizer)
        try:
            new = engine.stream(self.prompt.ids, max_tokens=self.tokens, seed=step, stop_ids=self.prompt.stop_ids)
            text = self.prompt.shown + "".join(new)
        except UserError as error:  # a failed sample must not end the run
            logger.info(f"no sample at step {step}: {error}")
            return
        finally:
            module.train()
        bpb = module.metrics.get("val/bpb")
        sample = Sample(step, round(module.loss.item(), 3), None if bpb is None else round(bpb, 4), text.strip())
        append_sample(self.run, sample)
        if self.trackers:
            self._draw_attention(model, step)
        if not trainer.should_stop:  # the whole last sample is shown at the end of the run
            logger.info(f"step {step} writes: {printable(' '.join(text.split())[:160])} ...")
        for tracker in self.trackers:
            tracker.sample(sample)

    def _draw_attention(self, model: GPT, step: int) -> None:
        """Write a picture of the attention of all heads over the prompt to the run folder.

        Only the first 48 tokens (MAP_TOKENS) of the prompt are shown. The prompt never changes, so the pictures of a run can be
        compared.
        """
        ids = self.prompt.ids[: min(MAP_TOKENS, model.config.context_length)]
        layers = attention_probabilities(model, torch.tensor([ids], device=model.wte.weight.device))
        shown = " ".join(self.tokenizer.decode(ids).split())
        picture = attention_maps([layer[0].float().cpu().numpy() for layer in layers], f"step {step}: {shown[:60]}")
        path = self.run.attention_picture(step)
        make_folder(path.parent, self.run.folder)
        with whole_file(path, self.run.folder) as file:
            file.write(picture)
