"""Find, create and check the folder of a run (invariant 1 of docs/ARCHITECTURE.md)."""

from __future__ import annotations

import dataclasses
import errno
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.config import RunConfig
from positron.run.facts import (
    Facts,
    Resolved,
    damage,
    read_config,
    read_facts,
    update_facts,
    warn_of_damage,
    write_record,
)
from positron.run.kept_weights import KeptWeights, kept_weights
from positron.run.paths import CONFIG, RunPaths
from positron.settings import from_dict
from positron.system.console import one_line
from positron.system.disk import expanded, make_folder, read_json
from positron.system.errors import UserError, without_advice

if TYPE_CHECKING:
    from positron.text.tokenizer import Tokenizer

OUTPUTS = Path("outputs")
# the kinds of runs that the commands make
PRETRAIN, DISTILL, SFT, PREFERENCE, REINFORCE = "pretrain", "distillation", "sft", "preference", "reinforce"
FROM_TEXT = (PRETRAIN, DISTILL)  # the kinds that have a text of their own, and no base run
TUNED = (SFT, PREFERENCE, REINFORCE)  # the kinds that always have a base run


@dataclass(frozen=True, init=False)
class Run(RunPaths):
    """Represent a run by its folder, `outputs/<name>/`, a path or a text; `RunPaths` names the files in it."""

    @property
    def is_chat(self) -> bool:
        """Tell whether the run's model answers messages, that is, whether the run folder contains the chat template.

        Raises UserError if this chat template differs from the template of this version of Positron.
        """
        path = self.chat_path
        if not path.exists():
            return False
        from positron.text.conversation import TEMPLATE

        if read_json(path) != TEMPLATE:
            raise UserError(
                f"{path} is damaged or was written by another version of Positron: restore it from a copy, or use "
                "the version that trained this run"
            )
        return True

    @property
    def kind(self) -> str:
        """Return the kind of training: `pretrain`, `distillation`, `sft`, `preference`, `reinforce` or a user's own kind."""
        kind = self.facts().kind
        if kind is not None:
            return kind
        return PRETRAIN if self.config().get("sft") is None else SFT  # a run of an older version

    @property
    def is_measured_on_answers(self) -> bool:
        """Tell whether validation scores only answers, as in supervised fine-tuning on conversations.

        If so, the best validation of the run is reported as its result; otherwise the last validation is reported.
        """
        return self.is_chat and self.kind == SFT

    @property
    def base(self) -> str | None:
        """Return the recorded path of the run whose weights this run started from (`init_from`), or None without `init_from`.

        The run at this path may have been moved since then. If this run is fine-tuned, `base_of` in run/base.py finds it.
        """
        facts = self.facts()
        if facts.kind is None:  # a run of an older version
            return self.config().get("init_from")
        return None if facts.base is None else str(expanded(facts.base))

    @property
    def fork(self) -> Path | None:
        """Return the recorded path of the checkpoint of another run with which this run began (`ckpt_path`), or None."""
        path = self.facts().forked_from
        # a fine-tuned run records here the weights of its base run
        return None if path is None or self.base is not None else expanded(path)

    @property
    def exists(self) -> bool:
        """Tell whether the folder contains a run: its settings, and a second file or folder that every run has.

        The settings alone are not enough, because a folder of transformers contains a `config.json`, too. One of the others may
        be missing in a damaged run.
        """
        others = (self.facts_path, self.tokenizer_folder, self.checkpoint_folder)
        try:
            return self.config_path.exists() and any(path.exists() for path in others)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # for example a list of runs, read as one name
                return False
            raise

    @property
    def has_checkpoint(self) -> bool:
        """Tell whether a checkpoint was saved and not deleted; it may be damaged."""
        return any(self.checkpoint_folder.glob("*.ckpt"))

    def config(self) -> dict[str, Any]:
        """Return the settings in `config.json` as nested dicts.

        If the checksum of the file is wrong, logs a warning and returns the settings nevertheless. Raises UserError if the file
        is not a JSON object, or if a value is missing or has a wrong type (see `facts.read_config`).
        """
        path = self.config_path
        config, is_whole = read_config(path)
        if not is_whole:
            warn_of_damage(path)
        return config

    def settings(self) -> RunConfig:
        """Return the settings as a `RunConfig`; keys that an older version did not have get their defaults.

        Raises UserError if a key is unknown or a value has a wrong type.
        """
        config = self.config()
        try:
            return from_dict(RunConfig, config)
        except UserError as error:
            raise UserError(
                f"{self.config_path} is damaged or was written by another version of Positron: {without_advice(error)}; "
                "restore it from a copy, or use the version that trained this run"
            ) from error

    def facts(self) -> Facts:
        """Return the facts in `run.json`, or empty facts if the file is missing.

        Logs a warning if the checksum of the file is wrong. Raises UserError if the file is not a JSON object or a value has
        the wrong type.
        """
        path = self.facts_path
        if not path.exists():
            return Facts()
        facts, is_whole = read_facts(path)
        if not is_whole:
            warn_of_damage(path)
        return facts

    def resolved(self) -> Resolved:
        """Return the values that training used, since its latest start, for the settings that can be `auto`.

        Raises UserError if `run.json` lacks them.
        """
        resolved = self.facts().resolved
        if resolved is None:
            raise UserError(
                f"{self.facts_path} is damaged: the key resolved must contain batch_tokens, micro_batch_size and max_steps; "
                "restore it from a copy, or train under another name="
            )
        return resolved

    def refuse_damaged_facts(self) -> None:
        """Raise UserError if `run.json`, which decides how training continues, does not match its checksum."""
        path = self.facts_path
        if path.exists() and not read_facts(path)[1]:
            raise UserError(damage(path))

    def refuse_lost_settings(self) -> None:
        """Raise UserError if the folder contains checkpoints but no `config.json`; a new training would erase them."""
        newest = max(self.checkpoint_folder.glob("*.ckpt"), default=None)  # best.ckpt sorts before step-000040.ckpt
        if newest is not None and not self.exists:
            raise UserError(
                one_line(
                    f"{self.folder} contains checkpoints ({newest.name}) but no {CONFIG}, so it cannot be continued: "
                )
                + f"restore {CONFIG} from a copy, give another name=, or delete {self.folder} to train again from the beginning"
            )

    def update(self, **facts: Any) -> None:
        """Write facts into `run.json`: `run.update(status="stopped", val_bpb=1.2)`; see `facts.update_facts`."""
        update_facts(self.facts_path, **facts)

    def begin(self, config: RunConfig, tokenizer: Tokenizer, *, kind: str, new: bool, forked_from: Path | None) -> None:
        """Write the run's settings, its kind of training (see `Run.kind`), and the path of its base run (`config.init_from`).

        For a `new` run, also write its tokenizer, its name and `forked_from`. `forked_from` is a checkpoint of another run.
        The new run continues it (ckpt_path=) or, in fine-tuning, starts from its weights (init_from=). `forked_from` is None
        if there is no such checkpoint.

        Raises UserError if the run is not new and its kind of training is not `kind`.
        """
        if not new and self.kind != kind:
            starter = "command" if self.kind in (*FROM_TEXT, *TUNED) else "Python program"
            raise UserError(
                one_line(f"{self.folder} was trained by the objective {self.kind}, and this command uses {kind}: ")
                + f"continue the run by the {starter} that started it, or give another name="
            )
        write_record(self.config_path, dataclasses.asdict(config))
        origin = {"kind": kind, "base": config.init_from}
        if new:
            make_folder(self.checkpoint_folder, self.folder)
            tokenizer.save(make_folder(self.tokenizer_folder, self.folder))
            origin |= {"name": config.name, "forked_from": str(forked_from) if forked_from else None}
        self.update(**origin)

    @property
    def history(self) -> list[KeptWeights]:
        """Return the steps and files of the weights that `train.keep_history` kept, earliest first.

        The list is empty if the setting was 0.
        """
        return kept_weights(self.history_folder)

    def metrics(self) -> Any:
        """Return the columns of `metrics.jsonl`, with NaN for missing numbers.

        The result is a pandas DataFrame if pandas is installed, otherwise a dict of NumPy arrays. Raises UserError for a
        damaged line, and if the folder is no run.
        """
        import numpy as np

        from positron.run.metrics import read_metrics

        if not self.exists:
            raise UserError(f"{self.folder} is no run: give the folder of a run, such as outputs/quickstart")

        rows = read_metrics(self.metrics_path)
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: np.array([np.nan if row.get(name) is None else row[name] for row in rows]) for name in names}
        try:
            import pandas as pd
        except ImportError:
            return columns
        return pd.DataFrame(columns)
