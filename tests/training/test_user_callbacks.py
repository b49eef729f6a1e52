"""The user's own callbacks: their state, their metrics, and what is saved if one of them raises an error or ends the run."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import tiny

from positron.run.checkpoint import load_checkpoint
from positron.system.errors import UserError
from positron.train import train
from positron.training.callbacks.checkpoints import WholeCheckpointIO


class Remembers(L.Callback):
    """Has a state, which a checkpoint stores."""

    def __init__(self, state: Any) -> None:
        self.state, self.loaded = state, None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict["best"]


def test_the_state_of_a_callback_may_contain_numbers_of_numpy(tmp_path: Path) -> None:
    state = {"loss": np.float64(3.5), np.int64(7): [np.bool_(True), (np.str_("text"), torch.ones(2))]}
    train(tiny(tmp_path, train__stop_at=5), tmp_path / "run", [Remembers(state)])
    again = Remembers(None)
    train(tiny(tmp_path, train__stop_at=6), tmp_path / "run", [again])
    assert again.loaded is not None
    assert repr(again.loaded) == "{'loss': 3.5, 7: [True, ('text', tensor([1., 1.]))]}"


CONTENTS = {"state_dict": {}, "bad_steps": 0, "global_step": 1, "tokenizer_hash": "", "gpt_config": {}}


@pytest.mark.parametrize("value", [np.zeros(2), Path("a"), np.datetime64(0, "s"), lambda: 0])
def test_a_state_that_could_not_be_loaded_is_refused_with_its_name(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "step-000001.ckpt"
    state = {"optimizer_states": [{}], "callbacks": {"Mine": {"best": [value]}}}
    kind = type(value).__name__
    with pytest.raises(UserError, match=rf"callbacks\.Mine\.best\[0\] is a {kind}, which could not be loaded again"):
        WholeCheckpointIO().save_checkpoint({**CONTENTS, **state}, path)
    assert not list(tmp_path.iterdir())


def test_whatever_torch_loads_without_executing_code_may_be_saved_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "step-000001.ckpt"
    state = {"a": {1, 2}, "b": torch.float32, "c": torch.Size([3]), "d": collections.OrderedDict(x=torch.ones(1))}
    WholeCheckpointIO().save_checkpoint({**CONTENTS, "callbacks": {"Mine": state}}, path)
    assert load_checkpoint(path)["callbacks"] == {"Mine": state}
