"""Start or continue a run: `python -m positron.train model=tinygpt device=mps`.

The Hydra part at the end composes the configuration; `train` is the recipe, importable, and returns its metrics.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.config import RunConfig, from_dict, seconds
from positron.disk import make_folder
from positron.door import Voice, run_hydra
from positron.runs import Run
from positron.sweeps import run_job

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Train the run of `folder` as far as it is not trained yet; returns its facts: status, step, val/bpb, best/bpb ...

    Raises UserError for what the user can mend, Interrupted after Ctrl-C or SIGTERM, Diverged where the loss stayed
    NaN or infinite; the run's last whole step is saved in each case.
    """
    begun = time.monotonic()
    from positron.training.allocator import tune_allocator

    tune_allocator()

    from positron.data.pretrain import PretrainData, prepare
    from positron.model.gpt import GPT
    from positron.runs import restore
    from positron.text.choose import load_tokenizer
    from positron.training.callbacks import Stopping
    from positron.training.device import choose_machine, set_threads
    from positron.training.fit import fit
    from positron.training.plan import make_plan
    from positron.training.start import decide_start, only_one

    run = Run(make_folder(folder))
    with only_one(run), Voice(run.folder / "train.log", f"{folder.name}: " if config.device.share < 1 else "") as say:
        set_threads(config.device)
        machine = choose_machine(config.device, config.precision)
        say(f"running on {machine.why}")
        start = decide_start(run, config, say)
        known = load_tokenizer(start.tokenizer_from.tokenizer_folder) if start.tokenizer_from else None
        tokenizer, tokens = prepare(config.data, config.tokenizer, known, say)
        model = GPT(config.model.with_vocab(tokenizer.vocab_size), seed=config.seed)
        model.checkpoint_activations = config.device.checkpoint_activations
        plan = make_plan(config, model, machine, start, say)
        data = PretrainData(
            config.data,
            tokens,
            tokenizer,
            context=model.config.context_length,
            batch_size=plan.batch_size,
            micro_batch_size=plan.micro_batch_size,
            seed=config.seed,
            val_tokens=config.train.val_tokens,
            say=say,
        )
        source = start.weights or start.checkpoint
        if source is not None:
            restore(model, tokenizer, source)  # Lightning loads the rest, where there is more to load
        if say.is_first_rank:
            run.begin(config, tokenizer, new=not start.is_own, forked_from=start.checkpoint)
        limit = None if config.train.max_time is None else seconds(config.train.max_time)
        stopping = Stopping(last_step=plan.last_step, max_seconds=limit, begun=begun, say=say)
        return fit(run, config, plan, model, data, tokenizer, start, stopping=stopping, say=say)


def job(cfg: DictConfig) -> float:
    """What Hydra calls, once or once per job of a sweep. Returns val/bpb, so that a sweeper can minimise it."""
    return run_job(cfg, lambda values: from_dict(RunConfig, values), train, show_result)


def show_result(folder: Path) -> None:
    """The last screen: what it writes, how good it is, where it lies, how to go on."""
    facts, samples = Run(folder).facts(), folder / "samples.md"
    if samples.exists():
        story = samples.read_text(encoding="utf-8").rsplit("\n## ", 1)[-1].split("\n\n", 1)[-1].strip()
        print(f"\n{story}\n")
    line = f"{facts['status']} at step {facts['step']}"
    if "val/bpb" in facts:
        line += (
            f" after {facts['time_s'] / 60:.1f} minutes of training: {facts['val/bpb']:.4f} validation bits per byte"
        )
        if facts["floor_bpb"]:
            above = facts["val/bpb"] / facts["floor_bpb"] - 1
            line += f", {above:.1%} above the {facts['floor_bpb']:.4f} that the text itself holds"
    print(line)
    print(f"the run: {folder}/  (report.html, loss.png, samples.md, metrics.jsonl, checkpoints/)")
    print(f'next:    python -m positron.generate "Once upon a time" --run {folder}')
    if facts["status"] == "stopped":
        print("         the same command again goes on")


def main() -> None:
    run_hydra(job, "train")


if __name__ == "__main__":
    main()
