"""A fine-tuning run that takes a second, and what such runs begin with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from conftest import tiny

from positron.config import DataConfig, RunConfig, SFTConfig
from positron.run.folder import Run
from positron.text.conversation import TEMPLATE
from positron.train import train


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


def chat_base(folder: Path) -> Path:
    """Fill a folder with a run that chats without having learned it, conversations, and pairs of answers."""
    config = tiny(folder, train__max_steps=2, model__context_length=64, train__batch_tokens=1024)
    train(config, folder / "base")
    Run(folder / "base").chat_path.write_text(json.dumps(TEMPLATE))
    questions = [f"The {thing} {n}?" for n in range(12) for thing in ("hat", "ball")]
    for name, key, answers in (
        ("conversations", "instruction", {"output": "It is red."}),
        ("pairs", "prompt", {"chosen": "It is red.", "rejected": "It is big."}),
    ):
        lines = [json.dumps({key: question, **answers}) for question in questions]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def pairs_of(base: Path) -> DataConfig:
    """The pairs of answers in `pairs.jsonl` of a folder."""
    return DataConfig("preferences", str(base / "pairs.jsonl"), val_fraction=0.2, dir=str(base / "data"))
