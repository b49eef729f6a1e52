"""A fine-tuning run that takes a second, and what such runs begin with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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


def assert_keeps_its_division(
    start: Callable[[RunConfig, Path], Any], config: RunConfig, answers: dict[str, str], folder: Path
) -> None:
    """Continue a run of a version that divided its data by first questions alone, although 95 of 100 are the same.

    `answers` are the fields of a row beside its question. A new run must divide the data in another way.
    """
    rows = [
        {"prompt": "The hat?" if i % 20 else f"The ball {i}?"} | {name: f"{text} {i}" for name, text in answers.items()}
        for i in range(100)
    ]
    path = folder / "common_question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(path)))
    with pytest.MonkeyPatch.context() as earlier_version:
        earlier_version.setattr("positron.data.splits.is_balanced", lambda *_: True)
        start(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=1)), folder / "old")
    began_with = Run(folder / "old").facts().data_fingerprint
    start(config, folder / "old")
    start(config, folder / "new")
    old, new = (Run(folder / name).facts() for name in ("old", "new"))
    assert old.status == new.status == "finished"
    assert old.data_fingerprint == began_with != new.data_fingerprint


def pairs_of(base: Path) -> DataConfig:
    """The pairs of answers in `pairs.jsonl` of a folder."""
    return DataConfig("preferences", str(base / "pairs.jsonl"), val_fraction=0.2, dir=str(base / "data"))
