"""Compare Positron's recipe with recipes of other projects: validation bits per byte for the same training time and text.

    python -m scripts.bench.quality TEXT [--minutes 10] [--seeds 3]

All recipes have the same documents, the same split and the same tokenizer (SentencePiece, 4,000 tokens, trained on the
training documents). A recipe decides the model, the optimizer, the batch and the precision. `quality_peers.py` implements the
recipes of the other projects:

    ours            `experiment=ten_minutes`, in bf16 if it is fast on this processor
    nanoGPT         the CPU example of its README: 4 layers of 128, context 64, batch 12, AdamW 1e-3 to 1e-4, fp32
    nanoGPT, large  the recipe of nanoGPT with the width, depth, context and batch of Positron's model
    nanochat        its recipe for a CPU: 6 layers of 384, context 512, 16,384 tokens per step, its variant of Muon, fp32
    HF Trainer      GPT-2 with the size of nanoGPT's model, trained by the Trainer of transformers: batch 32 x 128, AdamW
                    5e-4, weight decay 0.1, cosine (recipe of the course, "training a causal language model from scratch")

The learning rate of each recipe depends on the share of the time that has passed, so that its decay ends with the time. Each
recipe is a process. The processes train in turns of some seconds (A B C A B C ...), so that a change in the speed of the
machine affects all of them. Only training in these turns counts as time. Results are stored, and recipes with a result are
not trained again, so name all recipes that you compare in one command.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from positron.config import DataConfig, DeviceConfig, PrecisionConfig, RunConfig, TokenizerConfig
from positron.settings import from_dict
from positron.system.children import PipeEnd
from positron.system.disk import make_folder, write_json
from positron.system.log import screen_log
from scripts.bench.quality_report import NAMES, picture, table

TURN = 15.0  # seconds of a turn
SHARES = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # shares of the time at which to validate
VOCABULARY = TokenizerConfig("sentencepiece", 4000)


class Budget:
    """Measure the training time of a recipe, validate when a share of SHARES has passed, and pause between the turns."""

    def __init__(self, seconds: float, pipe: PipeEnd, bits_per_byte: Callable[[], float]) -> None:
        self.seconds, self.pipe, self.bits_per_byte = seconds, pipe, bits_per_byte
        self.spent, self.tokens = 0.0, 0
        self.points: list[tuple[float, float]] = []  # seconds, bits per byte
        self._turn = self._begun = 0.0

    def start(self) -> None:
        self.pipe.send("ready")
        self._await_turn()

    @property
    def progress(self) -> float:
        return min(1.0, self.spent / self.seconds)

    def step_done(self, tokens: int) -> bool:
        """Add a step of `tokens` tokens; return True if the training time is over."""
        passed = time.perf_counter() - self._begun
        self.spent, self._turn, self.tokens = self.spent + passed, self._turn + passed, self.tokens + tokens
        reached = sum(share <= self.progress for share in SHARES) - len(
            self.points
        )  # a long step may reach several shares
        if reached:
            self.points += [(self.spent, self.bits_per_byte())] * reached
        if self.progress >= 1:
            self.pipe.send({"points": self.points, "tokens": self.tokens})
            return True
        if self._turn >= TURN:
            self.pipe.send("turn")
            self._await_turn()
        self._begun = time.perf_counter()
        return False

    def _await_turn(self) -> None:
        self.pipe.recv()
        self._turn, self._begun = 0.0, time.perf_counter()


def scorer(nats: Callable[[Any, Any], Any], rows: tuple[Any, Any], token_bytes: Any, batch: int) -> Callable[[], float]:
    """Return a function that computes the bits per byte of the whole validation text.

    `nats(x, y)` returns the loss, summed over the targets y (B, T) that are >= 0.
    """
    import torch

    def bits_per_byte() -> float:
        total = size = 0.0
        with torch.inference_mode():
            for x, y in zip(*(part.split(batch) for part in rows), strict=True):
                total += float(nats(x, y))
                size += float(token_bytes[y.clamp(min=0)].mul(y >= 0).sum())
        return total / size / math.log(2)

    return bits_per_byte


def work(name: str, settings: dict[str, Any], pipe: PipeEnd) -> None:
    """Train one recipe, in a separate process."""
    if name == "ours":
        from positron.training.allocator import tune_allocator

        tune_allocator()
    import torch

    from positron.data.corpus import prepare
    from positron.data.shards import TokenFiles
    from positron.data.windows import Windows, validation_windows
    from positron.text.tokenizer import END_OF_TEXT
    from scripts.bench.quality_peers import PEERS, train_hugging_face, train_nanochat, train_nanogpt

    torch.set_num_threads(settings["threads"])
    torch.manual_seed(settings["seed"])
    recipe = from_dict(RunConfig, settings["recipe"])
    tokenizer, folder = prepare(from_dict(DataConfig, settings["data"]), VOCABULARY, None)
    end = tokenizer.special_id(END_OF_TEXT)
    assert recipe.train.batch_tokens != "auto"
    of_ours = recipe.model.context_length, int(recipe.train.batch_tokens) // recipe.window_tokens
    context, rows = PEERS.get(name, of_ours)
    at_documents = name == "nanochat" or (name == "ours" and recipe.data.packing == "documents")
    files = TokenFiles(folder, "train", tokenizer)
    windows = Windows(
        files,
        window=recipe.window_tokens if name == "ours" else context,
        batch_size=rows,
        seed=settings["seed"],
        end_id=end if at_documents else None,
    )
    validation = TokenFiles(folder, "val", tokenizer)
    # every model reads the whole text, in windows as long as its context
    text = validation_windows(validation, context=context, end_id=end, limit=settings["val_tokens"])

    def batches() -> Iterator[Any]:
        step = 0
        while True:
            step += 1
            yield windows.batch(step)

    def budget(nats: Callable[[Any, Any], Any]) -> Budget:
        score = scorer(nats, text, torch.from_numpy(tokenizer.token_bytes()), max(1, 8192 // context))
        return Budget(settings["seconds"], pipe, score)

    recipes: dict[str, Callable[..., None]] = {
        "ours": functools.partial(train_ours, document_start=end if recipe.data.document_mask else None),
        "nanochat": train_nanochat,
        "HF Trainer": train_hugging_face,
    }
    train: Callable[..., None] = recipes.get(name, train_nanogpt)
    train(name, recipe, tokenizer.vocab_size, batches(), budget, settings["seed"])


def train_ours(
    name: str,
    recipe: RunConfig,
    vocab: int,
    batches: Iterator[Any],
    budget: Any,
    seed: int,
    *,
    document_start: int | None,
) -> None:
    """Train with the model, optimizer, schedule and batch of `conf/experiment/ten_minutes.yaml`.

    Tokens attend only to their own document, which begins with the id `document_start`. If it is None, they attend to all
    earlier tokens of the window.
    """
    import torch

    from positron.model.gpt import GPT, document_numbers
    from positron.training.averaging import SPAN, WeightAverage
    from positron.training.device import choose_machine
    from positron.training.eager_step import add_gradient, update
    from positron.training.optim.groups import build_optimizer, set_lr
    from positron.training.optim.schedule import lr_at

    model = GPT(recipe.model.with_vocab(vocab), seed=seed)
    optimizer = build_optimizer(model.named_parameters(), recipe.optimizer, fused=True)
    machine = choose_machine(DeviceConfig("cpu"), PrecisionConfig())
    horizon = int(recipe.train.max_steps)  # length of the schedule; the elapsed time decides the position in it
    share = recipe.schedule.average_share
    average = WeightAverage(model, share=0.0, horizon=horizon)  # no mean yet

    def loss(model: GPT, part: tuple[torch.Tensor, ...]) -> torch.Tensor:
        total: torch.Tensor = model(*part, document_numbers(part[0], document_start))
        return total

    def nats(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with machine.autocast(), average.in_use():
            return loss(model, (x, y))

    clock: Budget = budget(nats)
    clock.start()
    for step, rows in enumerate(batches, 1):
        place = max(min(step, recipe.schedule.warmup_steps), round(clock.progress * horizon))
        lr = lr_at(place, horizon, peak=recipe.optimizer.lr, schedule=recipe.schedule)
        set_lr(optimizer.param_groups, lr)
        add_gradient(model, rows, machine, loss)
        update(model, optimizer, recipe.train.grad_clip)
        if share and not average.means and clock.progress >= 1 - SPAN * share:
            # only now can the number of steps be estimated
            average = WeightAverage(model, share=share, horizon=round(step / clock.progress))
        average.update(step)
        if clock.step_done(rows[:, 1:].numel()):
            return


def run_seed(names: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    """Train all recipes in turns with one seed.

    Returns {name: {"points": [(seconds, bits per byte), ...], "tokens": number of trained tokens}}.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[str, PipeEnd] = {}
    for name in names:
        ours, theirs = context.Pipe()
        context.Process(target=work, args=(name, settings, theirs), daemon=True).start()
        theirs.close()  # otherwise `recv` would not notice that the worker ended
        assert ours.recv() == "ready"
        workers[name] = ours
    results: dict[str, Any] = {}
    while len(results) < len(names):
        for name, pipe in workers.items():
            if name not in results:
                pipe.send("go")
                answer = pipe.recv()
                if answer != "turn":
                    results[name] = answer
                    print(f"seed {settings['seed']}, {name}: {answer['points'][-1][1]:.4f}", flush=True)
    return results


@screen_log()
def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="file of documents, separated by lines <|endoftext|>")
    parser.add_argument("--minutes", type=float, default=10.0, help="training time of each recipe (default: 10)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--val-tokens", type=int, default=10**9, help="validation tokens (default: all)")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_quality"))
    options = parser.parse_args()
    from positron.cli.request import compose
    from positron.data.corpus import prepare

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    make_folder(options.out)
    recipe = compose("train", ["experiment=ten_minutes", "name=bench"])
    data = {"source": "text", "path": options.text, "val_fraction": 0.05, "dir": str(options.out / "data")}
    prepare(from_dict(DataConfig, data), VOCABULARY, None)
    seeds: dict[int, dict[str, Any]] = {}
    for seed in range(options.seeds):
        path = options.out / f"seed-{seed}-{options.minutes:g}-minutes.json"
        settings = {"seed": seed, "threads": options.threads, "seconds": 60 * options.minutes, "data": data}
        settings |= {"recipe": recipe, "val_tokens": options.val_tokens}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"settings": settings, "results": {}}
        if known["settings"] != settings:
            raise SystemExit(f"{path} was measured with other settings: give another --out, or delete it")
        missing = [name for name in options.only if name not in known["results"]]
        if missing:
            known["results"] |= run_seed(missing, settings)
            write_json(path, known)
        seeds[seed] = known["results"]
    result = table(seeds, options.minutes)
    (options.out / "quality.md").write_text(result + "\n", encoding="utf-8", newline="\n")
    picture(seeds, options.out / "quality.png", f"{Path(options.text).stem}, {options.threads} threads")
    print(f"\n{result}\n\n{options.out}/quality.png")


if __name__ == "__main__":
    main()
