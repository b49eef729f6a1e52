"""Load the model and the tokenizer of a run, and refuse a checkpoint that belongs to another run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.config import GPTConfig, ModelConfig
from positron.run.find import find_run
from positron.run.folder import Run
from positron.settings import from_dict
from positron.system.console import one_line
from positron.system.errors import UserError

if TYPE_CHECKING:
    from positron.model.gpt import GPT
    from positron.run.kept_weights import KeptWeights
    from positron.text.tokenizer import Tokenizer


def gpt_config(config: dict[str, Any], vocab_size: int) -> GPTConfig:
    """Return the architecture that a run's `config.json` describes, with a vocabulary of `vocab_size` tokens.

    `config`: the contents of the file. The presets in `conf/` are not read, because they may have changed since the training.
    """
    return from_dict(ModelConfig, config["model"], "model").with_vocab(vocab_size)


def load_model(run: Run, checkpoint: Path | None = None) -> tuple[GPT, Tokenizer, Path]:
    """Return the model (in eval mode, on the CPU), the tokenizer, and the path of the checkpoint used.

    Without `checkpoint`, the best one is loaded, or the newest if no best was saved. Raises UserError if the run has no
    checkpoint, if model and tokenizer do not belong together (invariant 5 of docs/ARCHITECTURE.md), or if the model does not
    fit into memory.
    """
    return load_with_weights(run, checkpoint)[:3]


def load_with_weights(run: Run, checkpoint: Path | None = None) -> tuple[GPT, Tokenizer, Path, dict[str, Any]]:
    """Return what `load_model` returns, and the weights as the checkpoint stores them.

    The file is read only once: a run that still trains may replace it at any time.
    """
    from positron.model.gpt import GPT
    from positron.model.memory import check_memory
    from positron.run.checkpoint import best_or_newest, load_checkpoint
    from positron.text.factory import load_tokenizer

    path = checkpoint or best_or_newest(run.checkpoint_folder)
    if path is None:
        raise _no_checkpoint(run)
    tokenizer = load_tokenizer(run.tokenizer_folder)
    saved = load_checkpoint(path)
    refuse_other_tokenizer(saved, tokenizer, path)
    config = gpt_config(run.config(), tokenizer.vocab_size)
    refuse_other_architecture(saved, config, path, run.config_path)
    check_memory(config, copies=1)
    model = GPT(config)
    load_weights(model, saved["state_dict"], path)
    return model.eval(), tokenizer, path, saved["state_dict"]


def _no_checkpoint(run: Run) -> UserError:
    facts = run.facts()
    if facts.status in ("finished", "pruned"):
        return UserError(
            f"the checkpoints of {run.folder} are missing, though the run was trained to step {facts.step}: restore "
            f"{run.checkpoint_folder} from a copy, or name another run"
        )
    if facts.status == "diverged":
        return UserError(
            f"{run.folder} has no checkpoint, because its loss diverged before the first one: train a new run with a lower "
            "optimizer.lr=, or name another run"
        )
    return UserError(
        f"{run.folder} has no checkpoint yet: give the command that started this run again, and wait for its first checkpoint"
    )


def model_files(run: Run) -> tuple[Path, ...]:
    """Return the files that decide which model `load_model` returns; after a change to one of them, load the model again."""
    from positron.run.checkpoint import BEST, checkpoints

    best = run.checkpoint_folder / BEST
    return (run.config_path, run.chat_path, *([best] if best.exists() else checkpoints(run.checkpoint_folder)))


def load_kept_model(run: Run, entry: KeptWeights) -> GPT:
    """Return the model of a run (in eval mode, on the CPU) with the weights that were kept after one of its training steps.

    `entry`: an item of `run.history`. Raises UserError if its file is damaged, or if the weights do not fit the run's
    architecture.
    """
    from positron.model.gpt import GPT
    from positron.model.memory import check_memory
    from positron.run.kept_weights import read_kept_weights
    from positron.text.factory import load_tokenizer

    config = gpt_config(run.config(), load_tokenizer(run.tokenizer_folder).vocab_size)
    check_memory(config, copies=1)
    model = GPT(config)
    load_weights(model, read_kept_weights(entry), entry.path)
    return model.eval()


def load_draft(name: str | None, tokenizer: Tokenizer) -> GPT | None:
    """Return the model of the run `name`, to be the draft model of speculative decoding; None if `name` is None.

    Raises UserError if the run has another tokenizer than `tokenizer`.
    """
    if name is None:
        return None
    run = find_run(name)
    draft, other, _ = load_model(run)
    if other.hash != tokenizer.hash:
        raise UserError(
            f"the draft model {run.folder} has another tokenizer than the model: give --draft a run that has the tokenizer "
            "of the model, or leave --draft out"
        )
    return draft


def bare_names(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a LightningModule's weights under the names that `GPT` gives them; LoRA matrices are merged into the weights."""
    from positron.model.lora import merge_lora

    return merge_lora(stored_names(state_dict))


def stored_names(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Return a LightningModule's weights under the names that `GPT` gives them, and those of LoRA as they are stored."""
    from positron.model.kernels.torch_private import COMPILED_MARK

    return {name.removeprefix("model.").replace(COMPILED_MARK, ""): value for name, value in state_dict.items()}


def restore(model: GPT, tokenizer: Tokenizer, path: Path) -> dict[str, Any]:
    """Load a checkpoint's weights into the model, and return them as the checkpoint stores them.

    Raises UserError if the weights or the tokenizer belong to another model.
    """
    from positron.run.checkpoint import load_checkpoint

    saved = load_checkpoint(path)
    refuse_other_tokenizer(saved, tokenizer, path)
    load_weights(model, saved["state_dict"], path)
    return dict(saved["state_dict"])


def refuse_other_architecture(saved: dict[str, Any], config: GPTConfig, path: Path, config_path: Path) -> None:
    """Raise UserError if the checkpoint's architecture differs from `config`, the architecture of the run.

    A difference may leave the shapes of the weights unchanged; loading the weights would then not fail. Call this function
    before the model is built, because a damaged file may describe a model of an absurd size. `path` and `config_path` are the
    files of the checkpoint and of `config`, for the message.
    """
    own_values = dataclasses.asdict(config)
    for key, value in saved["gpt_config"].items():
        if key in own_values and own_values[key] != value:
            raise UserError(
                f"{path} contains a model with {key}={value}, but {config_path} says {key}={own_values[key]}: one of "
                "these two files is damaged or was edited; restore this file from a copy, or train again under another name="
            )


def load_weights(model: GPT, state_dict: dict[str, Any], path: Path) -> None:
    """Load a LightningModule's weights into the model. Raises UserError if names or shapes differ."""
    try:
        model.load_state_dict(bare_names(state_dict))
    except RuntimeError as error:
        raise UserError(
            f"the weights in {path} do not fit the model of the run ({_misfit(model, state_dict, error)}), so the file is "
            "damaged or from another run: restore it from a copy, or train again under another name="
        ) from error


def _misfit(model: GPT, state_dict: dict[str, Any], error: RuntimeError) -> str:
    """Return the first difference of names or shapes that made loading fail with `error`, or else the error itself."""
    own_weights, loaded_weights = model.state_dict(), bare_names(state_dict)
    for name, weight in own_weights.items():
        if name not in loaded_weights:
            return f"{name} is missing"
        if loaded_weights[name].shape != weight.shape:
            return f"{name} has the shape {list(loaded_weights[name].shape)} instead of {list(weight.shape)}"
    extra = next((name for name in loaded_weights if name not in own_weights), None)
    return one_line(" ".join(str(error).split()), 200) if extra is None else f"the model has no {extra}"


def refuse_other_tokenizer(checkpoint: dict[str, Any], tokenizer: Tokenizer, path: Path) -> None:
    """Raise UserError if the checkpoint was trained with another tokenizer than `tokenizer`."""
    if checkpoint["tokenizer_hash"] != tokenizer.hash:
        remedy = (
            "restore the checkpoint or the tokenizer, whichever was changed, from a copy"
            if Run(path.parent.parent).exists
            else "name the checkpoint in the folder of the run that saved the checkpoint"
        )
        raise UserError(
            f"{path} and the tokenizer of the run do not belong together: the checkpoint was trained with another tokenizer "
            f"(hash {checkpoint['tokenizer_hash'][:12]} instead of {tokenizer.hash[:12]}); {remedy}"
        )
