"""Give the inspector, the page *Look inside*, access to a run.

The inspector needs the best weights of the run, the weights that were kept during training (train.keep_history), and the
validation text of the run. For a run that was trained on the built-in stories, it also needs the grammar of these stories.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

from positron.config import DataConfig
from positron.data.corpus import find_token_files
from positron.data.open import StoriesSource
from positron.evaluation.eval_texts import texts_of_run
from positron.inference.engine import Engine
from positron.inference.text_model import sampling_from
from positron.inspection.ablation import ablated
from positron.inspection.look import MAX_TOKENS, TOP, look
from positron.inspection.lookdata import (
    Ablation,
    Continuation,
    HistoryData,
    LookData,
    RegretHistory,
    RuleRegret,
    RulesAtStep,
    Scores,
    TruthData,
)
from positron.inspection.scores import VALIDATION_BYTES, measure_scores
from positron.inspection.story_tokens import refuse_joining, refuse_unknown
from positron.inspection.tokens import Vocabulary
from positron.inspection.truth import (
    StoryTruth,
    compare_with_truth,
    model_log_probabilities,
    regret_by_rule,
    story_truth,
)
from positron.model.gpt import GPT
from positron.run.base import pretrained_run
from positron.run.checkpoint import BEST, step_of
from positron.run.folder import Run
from positron.run.load import load_kept_model, load_model
from positron.run.metrics import read_metrics
from positron.settings import from_dict
from positron.system.errors import UserError
from positron.text.tokenizer import END_OF_TEXT, Tokenizer

logger = logging.getLogger(__name__)

KEPT_MODELS = 3  # maximum number of models of earlier steps in memory
REGRET_STORIES = 20
MAX_CONTINUATION = 2000  # maximum number of tokens of a continuation; the page offers as many


class Subject:
    """Compute what the inspector, the page *Look inside*, shows about a run.

    Several threads may use the same object at the same time.
    """

    def __init__(self, run: Run, model: GPT | None = None, tokenizer: Tokenizer | None = None) -> None:
        """Load the best checkpoint of `run`, or use `model` and `tokenizer` if the caller has loaded them from it already.

        If no best checkpoint was saved, the newest one is loaded. Raises UserError if the checkpoint cannot be loaded.
        """
        self.run, self.name = run, run.folder.resolve().name
        best, run_tokenizer, path = load_model(run) if model is None or tokenizer is None else (model, tokenizer, None)
        self.best, self.tokenizer, self.chats = best, run_tokenizer, run.is_chat
        if path is None or path.name == BEST:
            facts = run.facts()
            self.best_step = facts.best_step if facts.best_step is not None else (facts.step or 0)
        else:
            self.best_step = step_of(path)
        self._earlier: OrderedDict[int, GPT] = OrderedDict()
        self._measured: dict[int, Scores] = {}
        self._regrets: dict[int, list[RuleRegret]] = {}
        self._lock = threading.RLock()

    def model(self, step: int | None = None) -> tuple[GPT, int]:
        """Return the model with the weights of a step (None: of the best checkpoint), and the number of the step.

        Raises UserError if the weights of the step were not kept.
        """
        if step is None or step == self.best_step:
            return self.best, self.best_step
        with self._lock:
            if step not in self._earlier:
                kept_weights = {weights.step: weights for weights in self.run.history}
                if step not in kept_weights:
                    known = [str(number) for number in sorted({*kept_weights, self.best_step})]
                    choice = f"the steps {', '.join(known)}" if len(known) > 1 else f"step {known[0]}"
                    advice = (
                        "choose one of them"
                        if len(known) > 1
                        else f"choose {choice}, or train a run with train.keep_history=20, which keeps the weights of "
                        "more steps"
                    )
                    raise UserError(f"{self.run.folder} has only the weights of {choice}, not of step {step}: {advice}")
                self._earlier[step] = load_kept_model(self.run, kept_weights[step])
                while len(self._earlier) > KEPT_MODELS:
                    self._earlier.popitem(last=False)
            self._earlier.move_to_end(step)
            return self._earlier[step], step

    def look(
        self,
        prompt: str,
        *,
        step: int | None = None,
        ablations: Sequence[Ablation] = (),
        top: int = TOP,
        focus: int | None = None,
        attention: Sequence[int] | None = None,
        scores: bool = False,
        continuation: Continuation | None = None,
    ) -> LookData:
        """Run the model of a step on a prompt, and return the data that the inspector shows (see `look.look`).

        `step` is None for the best checkpoint. The prompt of a chat model is a message. `continuation` are the settings with
        which the model continues the prompt or answers the message; if it is None, no text is generated. If `scores`, the
        scores of the heads are returned too. For the other arguments, see `look.look`. Raises UserError if an argument is
        wrong, or if the weights of the step were not kept.
        """
        model, at = self.model(step)
        data = look(
            model,
            self.tokenizer,
            prompt,
            chats=self.chats,
            run=self.name,
            step=at,
            ablations=ablations,
            top=top,
            focus=focus,
            attention=attention,
        )
        if continuation is not None:
            data["continuation"] = self._write(ablated(model, ablations) if ablations else model, prompt, continuation)
        if scores:
            data["scores"] = self.scores(at)
        return data

    def _write(self, model: GPT, prompt: str, settings: Continuation) -> str:
        values = {key: value for key, value in settings.items() if key not in ("max_tokens", "seed")}
        count, seed = settings.get("max_tokens", 100), settings.get("seed", 0)
        if isinstance(count, int) and count > MAX_CONTINUATION:
            raise UserError(f"max_tokens must be at most {MAX_CONTINUATION}, not {count}")
        vocabulary = Vocabulary(self.tokenizer, self.chats)
        ids = vocabulary.ids(prompt, model.config.context_length)
        (text,) = Engine(model, self.tokenizer).texts(
            [ids], sampling_from(values), max_tokens=count, seed=seed, stop_ids=vocabulary.ends
        )
        return text

    def scores(self, step: int | None = None) -> Scores:
        """Return the scores of all attention heads at a step (None: the best checkpoint), such as the induction score.

        The scores of a step are measured only once.
        """
        model, at = self.model(step)
        with self._lock:
            if at not in self._measured:
                self._measured[at] = measure_scores(model, self.tokenizer, self.validation_texts)
            return self._measured[at]

    @cached_property
    def validation_texts(self) -> list[str]:
        """Return the first documents of the validation text.

        The list is empty if the text is not on this machine, or if its token files would have to be written again.
        """
        with contextlib.suppress(UserError):
            return self._validation_stories(10)
        try:
            base = pretrained_run(self.run)
            data = from_dict(DataConfig, base.config()["data"])
            if find_token_files(data, self.tokenizer, base.facts().data_fingerprint) is None:
                return []  # preparing it again could take hours
            return texts_of_run(self.run, "val", VALIDATION_BYTES, "continue without this measurement")
        except UserError as error:
            logger.info(f"the heads are not measured on validation text: {error}")
            return []

    def history(self) -> HistoryData:
        """Return the steps whose weights were kept, each with its number of training tokens and its validation bits per byte.

        The bits per byte are those of the last validation up to this step.
        """
        rows = read_metrics(self.run.metrics_path)
        data: HistoryData = {"run": self.name, "points": [], "best": self.best_step}
        for step, _ in self.run.history:
            before = [row for row in rows if row["step"] <= step]
            validated = [row["val/bpb"] for row in before if row.get("val/bpb") is not None]
            tokens = before[-1].get("tokens") if before and before[-1]["step"] == step else None
            if tokens is None and self.run.facts().resolved is not None:
                tokens = step * self.run.resolved().batch_tokens
            data["points"].append({"step": step, "tokens": tokens, "val_bpb": validated[-1] if validated else None})
        return data

    def truth(self, prompt: str, *, step: int | None = None, top: int = TOP) -> TruthData:
        """Compare the model's probability of each token of a prompt with the exact probability by the story grammar.

        `step`: the step whose weights are used (None: the best checkpoint). `top`: how many of the possible next tokens are
        listed at each position. Raises the errors of `refuse_other_text`. Raises UserError if the run is a chat model, if the
        weights of the step were not kept, if the prompt is too long, or if `top` is out of range.
        """
        self.refuse_other_text()
        if self.chats:
            raise UserError(
                f"{self.run.folder} answers messages, but exact probabilities are known only for stories: name the "
                f"pretrained run {pretrained_run(self.run).folder} instead"
            )
        model, at = self.model(step)
        return compare_with_truth(model, self.tokenizer, prompt, run=self.name, step=at, top=top)

    def regrets(self) -> RegretHistory:
        """Return the regret of each grammar rule on validation stories, for several steps of the training.

        These steps are the step of the best checkpoint and all steps whose weights were kept (train.keep_history).

        The regret of a rule is the model's surprise (-log2 p) minus the surprise under the grammar's exact probabilities,
        summed over the rule's tokens. It is measured only once for each step; later calls return the stored values.

        Raises UserError if the exact probabilities cannot be computed (see `refuse_other_text`).
        """
        self.refuse_other_text()
        steps = sorted({self.best_step, *(weights.step for weights in self.run.history)})
        with self._lock:
            rows, truths = self._true_stories
            for step in steps:
                if step not in self._regrets:
                    model = self.model(step)[0]
                    self._regrets[step] = regret_by_rule(
                        truths, [model_log_probabilities(model, ids) for ids in rows], rows
                    )
            points: list[RulesAtStep] = [{"step": step, "rules": self._regrets[step]} for step in steps]
        order = {_key(rule): i for i, rule in enumerate(points[-1]["rules"])}
        for point in points:
            point["rules"] = sorted(point["rules"], key=lambda rule: order[_key(rule)])
        end = self.tokenizer.special_id(END_OF_TEXT)
        # of the ids of a row, the first, which begins the story, has no regret
        tokens = None if all(ids[-1] == end for ids in rows) else max(map(len, rows)) - 1
        return {"run": self.name, "stories": len(rows), "tokens": tokens, "points": points}

    @cached_property
    def _true_stories(self) -> tuple[list[list[int]], list[StoryTruth]]:
        """Return the token ids of the first 20 validation stories (REGRET_STORIES), and their probabilities under the grammar.

        The ids of each story are cut after 512 tokens (MAX_TOKENS), or at the context length if it is smaller.
        """
        texts = self._validation_stories(REGRET_STORIES)
        end = self.tokenizer.special_id(END_OF_TEXT)
        limit = min(MAX_TOKENS, self.best.config.context_length)
        rows = [[end, *ids, end][:limit] for ids in self.tokenizer.encode_batch(texts)]
        return rows, [story_truth(self.tokenizer, ids) for ids in rows]

    @property
    def knows_truth(self) -> bool:
        """Tell whether a built-in grammar wrote the run's text, so that the exact probabilities of its tokens are known."""
        try:
            self.refuse_other_text()
        except UserError:
            return False
        return True

    def refuse_other_text(self) -> None:
        """Raise UserError if the exact probabilities of the run's text cannot be computed.

        They can be computed only if the run was trained on the built-in stories of this version of Positron, if no token of its
        tokenizer contains parts of two words (see `refuse_joining`), and if the tokenizer knows all words (`refuse_unknown`).
        """
        self._source_of_stories()
        refuse_joining(self.tokenizer)
        refuse_unknown(self.tokenizer)

    def _source_of_stories(self) -> StoriesSource:
        """Return the source of the built-in stories on which the run or its base run was trained.

        Raises UserError if the run was trained on another text or on the stories of another version of Positron, or if its base
        run is missing.
        """
        base = pretrained_run(self.run)
        data = from_dict(DataConfig, base.config()["data"])
        if data.source != "stories":
            raise UserError(
                f"exact probabilities are only known for the built-in stories, and {base.folder} was trained on another text: "
                "name a run that was trained with data=stories"
            )
        source = StoriesSource(data)
        if base.facts().data_fingerprint not in (None, source.fingerprint):
            raise UserError(
                f"{base.folder} was trained on the stories of another version of Positron, and this version does not know "
                "their exact probabilities: use that version, or train a new run with data=stories"
            )
        return source

    def _validation_stories(self, count: int) -> list[str]:
        """Return the first `count` validation stories of the run, which are generated again as in training.

        Raises UserError if the run was not trained on the built-in stories of this version.
        """
        source = self._source_of_stories()
        documents = (document for task in source.tasks() for document in source.read(task))
        return [document.text for document in itertools.islice((d for d in documents if d.is_val), count)]


def _key(rule: RuleRegret) -> tuple[str, str]:
    return rule["group"], rule["rule"]
