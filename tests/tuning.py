"""A fine-tuning run that takes a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from conftest import tiny

from positron.config import DataConfig, RunConfig, SFTConfig


def tuned(base: Path, **changes: Any) -> RunConfig:
    values = tiny(base, model__context_length=64)
    config = dataclasses.replace(
        values,
        name="tuned",
        data=DataConfig("instruct", str(base / "conversations.jsonl"), val_fraction=0.2, dir=str(base / "data")),
        init_from=str(base / "base"),
        sft=SFTConfig(replay_ratio=0.2, patience=0),
        train=dataclasses.replace(
            values.train,
            max_steps=12,
            batch_tokens=512,
            micro_batch_size=4,
            val_every=4,
            sample_every=6,
            sample_prompt=None,
        ),
    )
    return dataclasses.replace(config, **changes)
