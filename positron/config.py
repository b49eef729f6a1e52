"""Define all settings that a user can choose, as plain dataclasses: the model (`GPTConfig`) and a whole run (`RunConfig`).

This module and the modules that it imports need only the standard library, so that any command can read a run without importing
torch or Hydra. Defaults are defined only here: a file in `conf/` contains only the values that it changes. The classes check
the values; `settings.py` checks names and types. The file is long, so that all settings can be read in one place.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Any, Literal, assert_never

from positron.ranges import (
    BelowHalf,
    BelowOne,
    ContextLength,
    Count,
    CountOrZero,
    Depth,
    MlpWidth,
    NotNegative,
    Positive,
    Rate,
    Ratio,
    Seed,
    Share,
    Width,
    first_complaint,
)
from positron.system.commands import command
from positron.system.errors import UserError
from positron.system.formatting import read_amount

IGNORE = -100  # the target id of a position that has no loss
EMPTY_NAME = "name= is empty: give the name of a folder below outputs/, such as name=first"


def check_ranges(settings: Any, group: str = "") -> None:
    """Raise UserError if a number in `settings` is outside the range that its type declares (see `ranges.py`).

    `group` is the first part of the number's key in the message, such as "model" in model.n_layer.
    """
    if complaint := first_complaint(settings):
        raise UserError(f"{group}{'.' if group else ''}{complaint}")


Norm = Literal["layernorm", "rmsnorm"]
Position = Literal["learned", "sinusoidal", "rope"]
Activation = Literal["gelu", "relu", "swish", "relu2", "swiglu"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Hold an architecture (`conf/model/*`) without the size of its vocabulary, which the tokenizer decides.

    `n_kv_head` None means as many key/value heads as query heads. `d_ff` None means 4 * d_model; for swiglu, which has three
    matrices instead of two, it means 8/3 * d_model rounded up to a multiple of 8.
    """

    context_length: ContextLength  # context window: number of tokens that the model reads at once
    d_model: Width  # width of the model: how many numbers represent a token
    n_layer: Depth  # depth: number of blocks of attention and MLP
    n_head: Count  # number of attention heads per block
    head_dim: Count | None = None  # numbers per head; null: d_model / n_head
    n_kv_head: Count | None = None  # key/value heads; null: as many as heads
    d_ff: MlpWidth | None = None  # width of the MLP; null: 4 d_model (8/3 d_model for swiglu)
    norm: Norm = "layernorm"  # normalisation before attention and MLP
    position: Position = "learned"  # encoding of a token's position (rope: rotary)
    activation: Activation = "gelu"  # activation function of the MLP
    bias: bool = False  # bias vectors in linear layers and norms
    tie_embeddings: bool = True  # the output head uses the embedding's weights
    qk_norm: bool = False  # normalise queries and keys of each head
    qk_scale: bool = False  # with qk_norm: learn a scale for each channel of a head, applied before rope
    # add to each embedding the embedding of the previous token, multiplied by one learned factor per channel
    smear: bool = False
    rope_base: Positive = 10_000.0  # base of the wavelengths of rope; a larger base suits a longer context
    norm_eps: Positive = 1e-5  # constant that a norm adds to the mean square before the square root
    window: Count | None = None  # sliding window: number of latest tokens a token attends to; null: the whole context
    dropout: BelowOne = 0.0  # share of activations that training sets to zero

    def __post_init__(self) -> None:
        check_ranges(self, "model")
        if self.head_dim is None and self.d_model % self.n_head:
            step = (
                self.n_head if self.has_learned_positions else 2 * self.n_head
            )  # the other positions need even widths
            raise UserError(
                f"model.d_model={self.d_model} is not divisible by model.n_head={self.n_head}: "
                f"try model.d_model={self.d_model // step * step or step}"
            )
        if self.n_kv_head is not None and self.n_head % self.n_kv_head:
            raise UserError(
                f"model.n_kv_head={self.n_kv_head} must divide model.n_head={self.n_head}: choose one of "
                + ", ".join(str(n) for n in range(1, self.n_head + 1) if self.n_head % n == 0)
            )
        if self.qk_scale and not self.qk_norm:
            raise UserError(
                "model.qk_scale=true needs model.qk_norm=true: add model.qk_norm=true, or leave model.qk_scale= out"
            )
        match self.position:
            case "learned":
                pass
            case "sinusoidal":
                if self.d_model % 2:
                    even = self.d_model + (self.n_head if self.head_dim is None else 1)
                    raise UserError(
                        f"model.position=sinusoidal needs an even model.d_model, not {self.d_model}: try model.d_model={even}"
                    )
            case "rope":
                if self.d_head % 2:
                    raise UserError(self._odd_head())
            case _:
                assert_never(self.position)

    def _odd_head(self) -> str:
        if self.head_dim is not None:
            even = self.head_dim + 1
            return f"model.position=rope needs an even model.head_dim, not {self.head_dim}: try model.head_dim={even}"
        widths = [n for n in (self.d_model - self.n_head, self.d_model + self.n_head) if n > 0]
        return (
            f"model.position=rope needs an even number of channels per head, and model.d_model={self.d_model} / "
            f"model.n_head={self.n_head} gives {self.d_head}: try model.d_model={' or '.join(map(str, widths))}"
        )

    def with_vocab(self, vocab_size: int) -> GPTConfig:
        """Return the complete architecture for a vocabulary of `vocab_size` tokens."""
        return GPTConfig(vocab_size=vocab_size, **dataclasses.asdict(self))

    @property
    def d_head(self) -> int:
        """Return the number of channels of a head."""
        return self.head_dim or self.d_model // self.n_head

    @property
    def kv_heads(self) -> int:
        """Return the number of key/value heads."""
        return self.n_kv_head or self.n_head

    @property
    def ff_width(self) -> int:
        """Return the width of the MLP."""
        if self.d_ff is not None:
            return self.d_ff
        return -(-8 * self.d_model // 24) * 8 if self.is_gated else 4 * self.d_model

    @property
    def has_learned_positions(self) -> bool:
        """Tell whether the position embeddings are trained weights, `wpe` of shape (context_length, d_model)."""
        match self.position:
            case "learned":
                return True
            case "sinusoidal" | "rope":
                return False
            case _:
                assert_never(self.position)

    @property
    def has_rope(self) -> bool:
        """Tell whether queries and keys are rotated by an angle that depends on the position."""
        match self.position:
            case "rope":
                return True
            case "learned" | "sinusoidal":
                return False
            case _:
                assert_never(self.position)

    @property
    def is_gated(self) -> bool:
        """Tell whether the MLP has a third matrix, `gate`, whose output multiplies the output of `up`."""
        match self.activation:
            case "swiglu":
                return True
            case "gelu" | "relu" | "swish" | "relu2":
                return False
            case _:
                assert_never(self.activation)

    @property
    def has_norm_bias(self) -> bool:
        """Tell whether norms have a bias beside their weight."""
        match self.norm:
            case "layernorm":
                return self.bias
            case "rmsnorm":
                return False
            case _:
                assert_never(self.norm)


@dataclass(frozen=True, kw_only=True)
class GPTConfig(ModelConfig):
    """Hold the complete architecture of a GPT. `numpy_ref` also implements every option of this architecture."""

    vocab_size: Count

    def matmul_params(self) -> int:
        """Return the number of weights in the matrix products for a token: all matrices of the blocks, and the output head."""
        attention = 2 * self.d_model * self.d_head * (self.n_head + self.kv_heads)
        mlp = (3 if self.is_gated else 2) * self.d_model * self.ff_width
        return self.n_layer * (attention + mlp) + self.vocab_size * self.d_model

    def n_params(self) -> int:
        """Return the exact number of trained parameters; a tied embedding counts once."""
        norm = self.d_model * (2 if self.has_norm_bias else 1)
        per_block = 2 * norm + (2 * self.d_head if self.qk_scale else 0)
        if self.bias:
            per_block += self.n_head * self.d_head + self.d_model + 2 * self.kv_heads * self.d_head  # q, out, k, v
            per_block += self.d_model + self.ff_width * (2 if self.is_gated else 1)
        embeddings = 0 if self.tie_embeddings else self.vocab_size * self.d_model
        positions = self.context_length * self.d_model if self.has_learned_positions else 0
        smear = self.d_model if self.smear else 0
        return self.matmul_params() + embeddings + positions + smear + self.n_layer * per_block + norm

    def flops_per_token(self, context: int | None = None) -> float:
        """Return the floating-point operations of training per token: forward (2 per weight) and backward (4 per weight).

        The sequence has T = `context` tokens (None: `context_length`). Token t, counted from 1, attends to min(t, window) keys;
        without a window, a token attends to (T + 1) / 2 keys on average. For each layer, head and key, the attention score and
        the weighted sum of the values together cost 12 * d_head operations (forward and backward). Norms and activations are
        not counted, as in the model FLOPs of the PaLM paper (arXiv:2204.02311, appendix B).
        """
        T = context or self.context_length
        beyond = max(0, T - (self.window or T))  # tokens whose window does not reach the first token
        keys = ((T + 1) * T - (beyond + 1) * beyond) / (2 * T)
        return 6 * self.matmul_params() + 12 * self.n_layer * self.n_head * self.d_head * keys


TokenizerKind = Literal["char", "word", "sentencepiece", "tiktoken", "huggingface"]


def _not(value: object) -> str:
    """Return the end of an error message, ", not VALUE", or "" if the user gave no value."""
    return "" if value is None or value == "" else f", not {value}"


@dataclass(frozen=True)
class TokenizerConfig:
    """Hold the settings of a tokenizer (`conf/tokenizer/*`).

    `vocab_size` is an upper limit: the vocabulary of a small corpus may have fewer tokens.
    """

    kind: TokenizerKind  # how text is cut into tokens
    vocab_size: Count | None = None  # for word and sentencepiece: largest number of different tokens
    name: str | None = None  # for tiktoken: name of the vocabulary

    def __post_init__(self) -> None:
        check_ranges(self, "tokenizer")
        match self.kind:
            case "char" | "huggingface":
                pass
            case "word":
                if self.vocab_size is None or self.vocab_size < 10:
                    raise UserError(
                        f"tokenizer.kind=word needs tokenizer.vocab_size= of at least 10{_not(self.vocab_size)}"
                    )
            case "sentencepiece":
                if self.vocab_size is None or self.vocab_size < 300:
                    raise UserError(
                        f"tokenizer.kind=sentencepiece needs tokenizer.vocab_size= of at least 300{_not(self.vocab_size)}: "
                        "the vocabulary contains 256 bytes, special tokens and the characters of the text"
                    )
            case "tiktoken":
                if self.name is None:
                    raise UserError("tokenizer.kind=tiktoken needs tokenizer.name=, such as tokenizer.name=cl100k_base")
            case _:
                assert_never(self.kind)


Packing = Literal["windows", "documents"]
OnInvalid = Literal["error", "replace"]


@dataclass(frozen=True)
class DataConfig:
    """Hold the settings of the data (`conf/data/*`).

    Prepared text, in the form of token ids, is kept below `dir`, in one folder per corpus.
    """

    # kind of data; addition: sums, for train and reinforce; instruct and story_instruct: conversations, for sft and reinforce;
    # preferences and story_preference: pairs of answers, for prefer; imported: only in runs of `positron import`, because the
    # training text of an imported model is unknown. With data=custom, the value is text in train and distill, instruct in
    # sft and reinforce, and preferences in prefer
    source: Literal[
        "stories",
        "addition",
        "text",
        "hub",
        "instruct",
        "story_instruct",
        "preferences",
        "story_preference",
        "imported",
    ]
    # file, folder or glob pattern: .parquet, and .json .jsonl .ndjson .csv .tsv .arrow, each also as .gz or .zst; for
    # source=text also .txt and .md
    path: str | None = None
    url: str | None = None  # for source=text: address from which the file is downloaded once
    sha256: str | None = None  # checksum of the file that data.url names
    field: str = "text"  # name of the field or column that holds the text, in files that have fields
    on_invalid: OnInvalid = "error"  # what to do with bytes that are not UTF-8: refuse the file, or replace them
    # for source=hub, instruct and preferences: dataset of the Hugging Face hub, OWNER/NAME
    repo: str | None = None
    files: str = "*"  # pattern that selects files of data.repo
    revision: str | None = None  # branch, tag or commit of data.repo
    config_name: str | None = None  # for a dataset without Parquet files: name of the configuration to read
    # largest amount of text to use; null: all of it; for source=hub, about a megabyte more is possible
    max_mb: Positive | None = None
    # for source=hub: stream the dataset; an epoch is this many tokens of new text
    tokens_per_epoch: int | str | None = None
    size_mb: Positive = 20.0  # for source=stories: size of the built-in corpus, rounded up to a multiple of 500 stories
    # for source=story_instruct: number of conversations; for source=story_preference: number of pairs
    examples: Count = 20_000
    seed: Seed = 0  # random seed of the built-in corpus and of the train/validation split
    # share of the text used for validation; 0 (only for conversations and pairs): validate on the training data
    val_fraction: BelowOne = 0.02
    # documents: a training window begins at the start of a document where possible; windows: the text is cut into equal
    # windows, wherever documents begin
    packing: Packing = "documents"
    # each token attends only to tokens of its own document, and positions are counted from the beginning of the document
    document_mask: bool = False
    # tokens of a training window, which holds several documents; at least model.context_length, also if it is null
    window_tokens: Count | None = None
    dir: str = "outputs/data"  # folder for prepared corpora (token files)

    def __post_init__(self) -> None:
        if not (self.holds_conversations or self.holds_pairs) and not 0 < self.val_fraction < 1:
            raise UserError(
                f"data.val_fraction={self.val_fraction:g} must be above 0 and below 1: both training and validation need text"
            )
        check_ranges(self, "data")
        match self.source:
            case "stories" | "addition" | "story_instruct" | "story_preference" | "imported":
                pass
            case "text":
                if not self.path and not self.url:
                    raise UserError("data=text needs data.path=FILE, a text file in UTF-8")
            case "hub":
                self._check_repo()
            case "instruct":
                if self.path and self.repo:
                    raise UserError("data.path= and data.repo= both say where the conversations are: give one of them")
                if self.repo is not None:
                    self._check_repo()
            case "preferences":
                if self.path and self.repo:
                    raise UserError("data.path= and data.repo= both say where the pairs are: give one of them")
                if not self.path and not self.repo:
                    raise UserError(
                        "data=preferences needs data.path=FILE or data.repo=OWNER/NAME: give one of them, or "
                        "data=story_preference"
                    )
                if self.repo is not None:
                    self._check_repo()
            case _:
                assert_never(self.source)
        if self.tokens_per_epoch is not None:
            self._check_stream()
        if self.window_tokens is not None and not self.document_mask:
            raise UserError(
                "data.window_tokens= needs data.document_mask=true, because a token cannot attend to a whole window that is "
                "longer than the context: give data.document_mask=true, or data.window_tokens=null"
            )

    def window_of(self, context: int) -> int:
        """Return the number of tokens of a training window for a model that reads `context` tokens."""
        return max(context, self.window_tokens or 0)

    def window_key(self, context: int) -> str:
        """Return the key of the setting that decides `window_of`."""
        return "data.window_tokens" if self.window_of(context) > context else "model.context_length"

    def _check_repo(self) -> None:
        if not self.repo or self.repo.count("/") != 1:
            raise UserError(f"data={self.source} needs data.repo=OWNER/NAME{_not(self.repo)}")
        if self.config_name is not None and self.files != "*":
            raise UserError("data.config_name= and data.files= both choose files of data.repo: give one of them")

    def _check_stream(self) -> None:
        if self.source != "hub":
            raise UserError(
                "data.tokens_per_epoch= is read only for a dataset of the Hugging Face hub: give data=fineweb_edu or data=hub "
                "data.repo=OWNER/NAME, or give data.tokens_per_epoch=null"  # the value may come from an experiment
            )
        if self.max_mb is not None:
            raise UserError(
                "data.tokens_per_epoch= streams all of a dataset, but data.max_mb= takes only a part: leave data.max_mb= out, "
                "or give data.tokens_per_epoch=null"
            )
        if self.packing != "windows":
            raise UserError(
                f"data.tokens_per_epoch= cannot be combined with data.packing={self.packing}: give data.packing=windows, or "
                "data.tokens_per_epoch=null"
            )
        assert self.epoch_tokens

    @property
    def holds_conversations(self) -> bool:
        """Tell whether the data consists of conversations."""
        match self.source:
            case "instruct" | "story_instruct":
                return True
            case "stories" | "addition" | "text" | "hub" | "preferences" | "story_preference" | "imported":
                return False
            case _:
                assert_never(self.source)

    @property
    def holds_pairs(self) -> bool:
        """Tell whether the data consists of pairs of answers, one of which is preferred to the other."""
        match self.source:
            case "preferences" | "story_preference":
                return True
            case "stories" | "addition" | "text" | "hub" | "instruct" | "story_instruct" | "imported":
                return False
            case _:
                assert_never(self.source)

    @property
    def epoch_tokens(self) -> int:
        """Return `tokens_per_epoch` as a number: 10_000_000 for 10M. Raises UserError if it is not a number of at least 1."""
        text = str(self.tokens_per_epoch).strip()
        number = read_amount(text)
        if not 1 <= number < float("inf"):
            raise UserError(
                f"data.tokens_per_epoch={text} is not a number of tokens: give a number of at least 1, such as 10000000 or 10M"
            )
        return round(number)


Accelerator = Literal["cpu", "cuda", "mps"]
# Tokens per optimizer step that suit an accelerator: the presets in conf/device/ use them, and `auto` starts from them.
BATCH_TOKENS: dict[Accelerator, int] = {"cuda": 131_072, "mps": 98_304, "cpu": 65_536}


@dataclass(frozen=True)
class DeviceConfig:
    """Hold the settings of the machine (`conf/device/*`).

    When a new run starts, each `auto` except that of `strategy` is replaced by a value, which run.json records. `strategy` may
    be `auto` only if a single process trains the run.
    """

    accelerator: Accelerator | Literal["auto"] = "auto"  # kind of device; auto: CUDA, else MPS, else the CPU
    devices: Count = 1  # GPUs (or CPU processes) per machine that train one run together
    # number of machines; start the same command on each machine, with the environment variables MASTER_ADDR and MASTER_PORT,
    # and with the number of the machine, from 0, as NODE_RANK
    num_nodes: Count = 1
    # how several devices share the work; fsdp also shards the weights
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    batch_tokens: Count | Literal["auto"] = "auto"  # default of train.batch_tokens on this device
    micro_batch_size: Count | Literal["auto"] = "auto"  # default of train.micro_batch_size on this device
    threads: Count | Literal["auto"] = "auto"  # CPU threads per process
    share: Share = 1.0  # share of the machine's cores and memory that this run may use
    compile: bool = False  # use torch.compile: a slower start, then faster steps on CUDA
    checkpoint_activations: bool = False  # gradient checkpointing: keep only each block's input, recompute the rest

    @property
    def processes(self) -> int:
        """Return the number of processes that train one run: one for each device of each machine."""
        return self.devices * self.num_nodes

    @property
    def shards_weights(self) -> bool:
        """Tell whether the weights are divided among the processes."""
        match self.strategy:
            case "fsdp":
                return True
            case "auto" | "ddp":
                return False
            case _:
                assert_never(self.strategy)

    def __post_init__(self) -> None:
        check_ranges(self, "device")
        if self.processes > 1 and self.strategy == "auto":
            raise UserError(
                "several devices need device.strategy=ddp, or device.strategy=fsdp for a model that does not fit on one device"
            )


Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class PrecisionConfig:
    """Hold the number format of matrix products (`conf/precision/*`)."""

    dtype: Precision | Literal["auto"] = "auto"  # number format of matrix products; weights are always fp32


# the keys that each kind of optimizer reads besides lr and weight_decay
OPTIMIZER_READS = {
    "adamw": ("betas", "eps"),
    "muon": ("betas", "eps", "momentum", "embedding_ratio"),
    "custom": ("_target_", "options"),
}


@dataclass(frozen=True)
class OptimizerConfig:
    """Hold the settings of the optimizer (`conf/optimizer/*`)."""

    # muon: orthogonalised steps for the matrices of the blocks, and AdamW for all other weights
    kind: Literal["adamw", "muon", "custom"] = "adamw"
    lr: Rate = 3e-4  # peak learning rate
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)  # decay rates of AdamW's averages of the gradient and of its square
    eps: Positive = 1e-8  # constant that AdamW adds to its denominator
    weight_decay: NotNegative = 0.1  # weight decay, applied to matrices only
    momentum: BelowOne = 0.95  # for muon: decay rate of its averages of the gradients; small steps need less
    embedding_ratio: Positive = 1.0  # for muon: learning rate of embeddings and head, as a multiple of lr
    _target_: str | None = None  # for custom: module.Class of any torch optimizer, such as torch.optim.RAdam
    options: dict[str, Any] | None = None  # for custom: further arguments of the class, such as {momentum:0.9}

    def __post_init__(self) -> None:
        check_ranges(self, "optimizer")
        if self.embedding_ratio != 1 and "embedding_ratio" not in OPTIMIZER_READS[self.kind]:
            raise UserError(
                "optimizer.embedding_ratio= is read only with optimizer=muon: give optimizer=muon, or leave "
                "optimizer.embedding_ratio= out"
            )
        if self.is_custom and not self._target_:
            raise UserError("optimizer=custom needs optimizer._target_=module.Class, such as torch.optim.RAdam")

    @property
    def is_custom(self) -> bool:
        """Tell whether the optimizer is the class that `_target_` names."""
        match self.kind:
            case "custom":
                return True
            case "adamw" | "muon":
                return False
            case _:
                assert_never(self.kind)


@dataclass(frozen=True)
class ScheduleConfig:
    """Hold the schedule of the learning rate over the steps of a run; see `training/optim/schedule.py`."""

    kind: Literal["cosine", "linear", "constant", "trapezoid"] = "cosine"  # shape of the learning rate after the warmup
    warmup_steps: CountOrZero = 100  # steps during which the learning rate rises from 0 to its peak
    decay_share: Share = 0.4  # for trapezoid: share of the steps during which the rate falls
    final_ratio: Ratio | None = None  # last learning rate, as a multiple of the peak; null: 0 for trapezoid, else 0.1
    # time constant, as a share of the steps, of the mean of the last weights that validation and checkpoints use; 0: none
    average_share: Ratio = 0.0

    def __post_init__(self) -> None:
        if self.final_ratio is None:  # so that a run records the number
            object.__setattr__(self, "final_ratio", self._usual_final_ratio)
        check_ranges(self, "schedule")

    @property
    def _usual_final_ratio(self) -> float:
        match self.kind:
            case "cosine" | "linear" | "constant":
                return 0.1
            case "trapezoid":
                return 0.0
            case _:
                assert_never(self.kind)


@dataclass(frozen=True)
class TrainConfig:
    """Hold the settings of the training loop. All intervals are counted in optimizer steps."""

    # length of training in optimizer steps; auto: 20 tokens per parameter in train and distill, sft.epochs in sft,
    # preference.epochs in prefer, and 100 steps in reinforce
    max_steps: Count | Literal["auto"] = "auto"
    stop_at: Count | None = None  # stop at this step for now; max_steps and the learning rate stay as planned
    max_time: float | str | None = None  # save and stop before this time has passed: seconds, or 10m, 2h
    # accept a larger max_steps for an existing run; the learning rate is then planned for the new number of steps
    extend: bool = False
    batch_tokens: Count | Literal["auto"] = "auto"  # batch size: tokens per optimizer step, on all devices together
    micro_batch_size: Count | Literal["auto"] = (
        "auto"  # sequences computed at once on one device (gradient accumulation)
    )
    grad_clip: NotNegative = 1.0  # gradient clipping: largest norm of the gradient; 0: no clipping
    log_every: Count = 10  # steps between rows in metrics.jsonl, and between progress lines
    val_every: Count = 100  # steps between validations
    val_tokens: Count = 200_000  # largest number of tokens used for validation
    save_every: Count = 50  # steps between checkpoints
    keep_last: Count = 2  # number of newest checkpoints kept, besides the best one
    # number of steps, spread over the whole training, whose weights are kept; 0: none
    keep_history: CountOrZero = 0
    sample_every: Count = 200  # steps between sample texts, which are written to samples.jsonl and samples.md
    # prompt of the samples; null: the first validation prompt in sft and prefer, "Once upon a time" in train and distill;
    # reinforce always takes the first validation prompt
    sample_prompt: str | None = "Once upon a time"
    sample_tokens: Count = 200  # length of a sample text in tokens
    # the run stops after this many steps in a row with a NaN or infinite loss or gradient; each such step is skipped
    max_bad_steps: Count = 5

    def __post_init__(self) -> None:
        check_ranges(self, "train")
        if self.max_time is not None:
            seconds(self.max_time)


@dataclass(frozen=True)
class WandbConfig:
    """Hold the settings of Weights & Biases (`logger=wandb`)."""

    project: str = "positron"  # project in Weights & Biases
    entity: str | None = None  # user or team in Weights & Biases; null: the account's default
    # name of the run in Weights & Biases; null: the name of the run folder, or SWEEP/NUMBER for a job of a sweep
    name: str | None = None
    group: str | None = (
        None  # group of runs in Weights & Biases; null: the name of the sweep, if the run is part of one
    )
    tags: tuple[str, ...] = ()  # tags of the run in Weights & Biases


@dataclass(frozen=True)
class TensorboardConfig:
    """Hold the settings of TensorBoard (`logger=tensorboard`)."""

    subdir: str = "tensorboard"  # subfolder of the run's folder for TensorBoard's files

    def __post_init__(self) -> None:
        parts = self.subdir.replace("\\", "/").split("/")
        if any(part in ("", ".", "..") for part in parts) or ":" in parts[0] or "\0" in self.subdir:
            raise UserError(
                f"logger.tensorboard.subdir={self.subdir} must be a folder inside the run folder, such as tensorboard"
            )


@dataclass(frozen=True)
class LoggerConfig:
    """Hold the loggers of a run besides metrics.jsonl, which is always written."""

    wandb: WandbConfig | None = None
    tensorboard: TensorboardConfig | None = None


@dataclass(frozen=True)
class SweepConfig:
    """Hold the settings that decide when a job of a sweep is stopped early.

    A sweep is several runs that one command with -m starts. A job is one of these runs.
    """

    # median: stop a job that is worse than the median of the finished jobs with the same seed at the same step
    prune: Literal["median"] | None = None
    startup_jobs: Count = 5  # jobs with the same seed that must finish before a job is stopped early

    def __post_init__(self) -> None:
        check_ranges(self, "sweep")


@dataclass(frozen=True)
class MonitorConfig:
    """Hold the settings of the measurements inside the model during training (`conf/monitor/*`)."""

    every: Count = 100  # steps between measurements
    gradients: bool = False  # norm of the gradient of each layer and matrix, before clipping
    weights: bool = False  # norm of each layer's weights, and of the change by one step
    attention: bool = False  # entropy of each attention head
    activations: bool = False  # size of the residual stream; share of MLP units that are dead or always on
    tokens: bool = False  # validation loss of frequent and rare tokens, early and late in the context

    def __post_init__(self) -> None:
        check_ranges(self, "monitor")


@dataclass(frozen=True)
class LoraConfig:
    """Hold the settings of low-rank adapters, LoRA (`sft.lora`, `preference.lora`, `reinforce.lora`)."""

    rank: CountOrZero = 0  # LoRA: rank of the matrices that are trained instead of the weights; 0: train all weights
    # with LoRA, also train the embeddings of the tokens that mark the turns, so that the model learns to end its answers
    markers: bool = True


@dataclass(frozen=True)
class SFTConfig:
    """Hold the settings of fine-tuning on conversations."""

    epochs: Positive = 3.0  # passes over the conversations, if train.max_steps=auto
    packing: bool = False  # put several conversations into one row of a batch; they do not attend to each other
    replay_ratio: BelowOne = 0.1  # share of each batch taken from the base run's text, so that the model forgets less
    patience: CountOrZero = 5  # early stopping: stop after this many validations without improvement; 0: never
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "sft")
        check_ranges(self.lora, "sft.lora")


PreferenceLoss = Literal["dpo", "ipo", "simpo", "orpo"]


@dataclass(frozen=True)
class PreferenceConfig:
    """Hold the settings of learning from pairs of answers; `training/objective/preference_losses.py` has the formulas."""

    loss: PreferenceLoss = "dpo"  # loss function; dpo and ipo compare the model with the model before the training
    # factor of the log-probabilities in dpo and simpo, and tau of ipo: a smaller value lets dpo and ipo change the model
    # more; null: 0.1 for dpo and ipo, 2 for simpo; not used by orpo
    beta: Positive | None = None
    label_smoothing: BelowHalf = 0.0  # for dpo: assumed share of pairs whose chosen answer is the worse one
    gamma: NotNegative = 1.0  # for simpo: margin by which the chosen answer should be ahead of the rejected one
    weight: Positive = 0.1  # for orpo: weight of the odds-ratio loss, which is added to the loss of the chosen answer
    epochs: Positive = 1.0  # passes over the pairs, if train.max_steps=auto
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        if self.beta is None:  # so that a run records the number
            object.__setattr__(self, "beta", self._usual_beta)
        check_ranges(self, "preference")
        check_ranges(self.lora, "preference.lora")

    @property
    def _usual_beta(self) -> float | None:
        match self.loss:
            case "dpo" | "ipo":
                return 0.1
            case "simpo":
                return 2.0
            case "orpo":
                return None
            case _:
                assert_never(self.loss)


# the keys that each kind of reward reads
REWARD_READS: dict[str, tuple[str, ...]] = {
    "story_request": (),
    "length": ("target",),
    "regex": ("pattern",),
    "addition": (),
    "custom": ("function",),
    "sum": ("terms",),
}


@dataclass(frozen=True)
class RewardTerm:
    """Hold one term of a weighted sum of rewards (`reward.terms`).

    A field other than `weight` has the same meaning as the field of RewardConfig with the same name. RewardConfig checks the
    values of its terms.
    """

    kind: Literal["story_request", "length", "regex", "addition", "custom"]  # as reward.kind
    weight: float = 1.0  # factor of this reward in the sum; a negative weight makes the reward a penalty
    function: str | None = None  # as reward.function
    pattern: str | None = None  # as reward.pattern
    target: Count | None = None  # as reward.target


@dataclass(frozen=True)
class RewardConfig:
    """Hold the settings of the reward for completions in reinforcement learning (`conf/reward/*`)."""

    # kind of reward; story_request: 1 for a built-in story that fulfils the request; length: 1 at reward.target characters,
    # 0 for an empty text and from twice the target on, linear between; regex: 1 if reward.pattern matches; addition: 1 for the
    # correct sum; custom: the function reward.function; sum: the weighted sum of reward.terms
    kind: Literal["story_request", "length", "regex", "addition", "custom", "sum"]
    function: str | None = None  # for custom: my_module.my_reward, a function of prompt and completion, both texts
    pattern: str | None = None  # for regex: regular expression of Python that is searched in the completion
    target: Count | None = None  # for length: number of characters
    # for sum: rewards and their weights, such as [{kind:story_request},{kind:length,target:400,weight:0.2}]
    terms: tuple[RewardTerm, ...] = ()
    # seconds that one call of a reward may take; a slower call is repeated once, and a second slow call ends the run
    max_seconds: Positive = 10.0

    def __post_init__(self) -> None:
        check_ranges(self, "reward")
        if self.kind == "sum" and not self.terms:
            raise UserError(
                "reward=sum needs reward.terms=, such as 'reward.terms=[{kind:story_request},{kind:length,target:400}]'"
            )
        for i, term in enumerate(self.terms):
            check_ranges(term, f"reward.terms[{i}]")
            _refuse_unread_of_term(term, f"reward.terms[{i}]")
            _check_reward(term, f"reward.terms[{i}].")
        _check_reward(self, "reward.")

    @property
    def summands(self) -> tuple[RewardTerm, ...]:
        """Return `terms` if `kind` is sum, and otherwise this reward as a single term with weight 1."""
        match self.kind:
            case "sum":
                return self.terms
            case "story_request" | "length" | "regex" | "addition" | "custom":
                return (RewardTerm(self.kind, 1.0, self.function, self.pattern, self.target),)
            case _:
                assert_never(self.kind)


def _refuse_unread_of_term(term: RewardTerm, key: str) -> None:
    """Raise UserError if `term`, an entry of reward.terms, sets a field that a reward of the kind `term.kind` does not read.

    `key` is the name of the entry in the message, such as reward.terms[0]. `cli/unused_settings.py` checks all other settings.
    """
    for name in ("function", "pattern", "target"):
        if getattr(term, name) is not None and name not in REWARD_READS[term.kind]:
            reader = next(kind for kind, names in REWARD_READS.items() if name in names)
            raise UserError(
                f"{key}.{name} is read by kind:{reader}, not by kind:{term.kind}: leave {name} out, or give kind:{reader}"
            )


def _check_reward(reward: RewardTerm | RewardConfig, prefix: str) -> None:
    """Raise UserError if a key that this kind of reward needs is missing, or if `pattern` is not a regular expression.

    `prefix` is the beginning of the key in the message, such as "reward.".
    """
    match reward.kind:
        case "length":
            missing = None if reward.target else ("target", "400 (characters)")
        case "regex":
            missing = None if reward.pattern is not None else ("pattern", "'[0-9]+'")
            _check_pattern(reward.pattern or "", f"{prefix}pattern")
        case "custom":
            missing = None if reward.function else ("function", "my_module.my_reward")
        case "story_request" | "addition" | "sum":
            missing = None
        case _:
            assert_never(reward.kind)
    if missing is not None:
        key, example = missing
        if isinstance(reward, RewardConfig):
            raise UserError(f"reward={reward.kind} needs {prefix}{key}=, such as {prefix}{key}={example}")
        example = example.replace("'", '"')  # because the whole list is in single quotes
        raise UserError(
            f"{prefix.rstrip('.')} has kind:{reward.kind} without {key}: add {key}, such as {key}:{example}"
        )


def _check_pattern(pattern: str, key: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{key}={pattern} is not a regular expression: {error}; correct it") from error


Advantage = Literal["rloo", "dr_grpo"]


@dataclass(frozen=True)
class ReinforceConfig:
    """Hold the settings of reinforcement learning."""

    prompts: Count = 16  # prompts per optimizer step
    # share of a step's prompts that are asked again, because at least one of their last answers did not get the full reward
    hard_share: Ratio = 0.0
    samples: Count = 8  # answers to each prompt, at least 2; they are compared with each other
    # what an answer's reward is compared with; rloo: the mean of the other answers; dr_grpo: the mean of all answers
    advantage: Advantage = "rloo"
    temperature: Positive = 1.0  # temperature at which answers are sampled, and by which training divides the logits
    max_tokens: Count = 256  # longest answer; a longer one is cut off
    mask_truncated: bool = False  # true: an answer that was cut off at max_tokens gets the advantage 0
    kl: NotNegative = (
        0.0  # weight of the KL divergence from the model before the training; 0: the divergence is only measured
    )
    # weight of the mean loss on windows of the pretraining text, so that the model forgets less; 0: no such text is read
    replay: NotNegative = 0.1
    weights: Literal["fp32", "bf16", "int8"] = "fp32"  # number format of the weights with which answers are sampled
    # if answers are sampled in another precision than that of the training, each token's loss is multiplied by the ratio of
    # the token's probabilities in training and in sampling; this is the largest value of the ratio
    max_ratio: Positive = 2.0
    val_prompts: Count = 32  # number of prompts that are answered at each validation
    val_samples: Count = 8  # number of answers to each validation prompt
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "reinforce")
        check_ranges(self.lora, "reinforce.lora")
        for key in ("samples", "val_samples"):
            if getattr(self, key) < 2:
                raise UserError(
                    f"reinforce.{key}={getattr(self, key)} must be at least 2, because the answers to a prompt are compared "
                    "with each other"
                )


@dataclass(frozen=True)
class DistillConfig:
    """Hold the settings of distillation; `numpy_ref/distillation.py` has the formulas."""

    # runs, by name or folder, from whose probabilities a new model learns; teachers=A,B for short
    teachers: tuple[str, ...] = ()
    alpha: Ratio = 0.5  # weight of the teachers in the loss; 0: learn from the text alone, 1: from the teachers alone
    temperature: Positive = (
        1.0  # divides the logits of student and teachers; above 1, their probabilities are more even
    )

    def __post_init__(self) -> None:
        check_ranges(self, "distill")
        if not self.teachers:
            raise UserError(f"{command('distill')} needs teachers=RUN, a trained run, or several as teachers=RUN,RUN")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Hold all settings of a run, as `positron train --cfg job` prints them."""

    name: str  # name of the run: its folder is outputs/NAME; giving the same command again continues the run
    seed: Seed = 0  # random seed of the initial weights, the order of the text, and dropout
    model: ModelConfig
    tokenizer: TokenizerConfig
    data: DataConfig
    device: DeviceConfig
    precision: PrecisionConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    train: TrainConfig
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    sft: SFTConfig | None = None  # set by the command sft only
    preference: PreferenceConfig | None = None  # set by the command prefer only
    reinforce: ReinforceConfig | None = None  # set by the command reinforce only
    reward: RewardConfig | None = None  # set by the command reinforce only
    distill: DistillConfig | None = None  # set by the command distill only
    # continue from a checkpoint FILE, from the newest checkpoint of a RUN, or from latest, the newest checkpoint of this run;
    # weights, optimizer and step are restored
    ckpt_path: str | None = None
    init_from: str | None = None  # run with whose weights this run starts; optimizer and step are new
    # auto: continue if the run exists; must: refuse to start a new run; never: refuse to continue
    resume: Literal["auto", "must", "never"] = "auto"
    # time to train, such as 10m or 2h; default with model=auto: 10m; batch size, steps, learning rate and weight decay are
    # chosen for this time; reinforce: only the number of steps is chosen
    budget: float | str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError(EMPTY_NAME)
        if set(self.name) & set('\\:*?"<>|\n') or self.name.startswith((".", "/")) or ".." in self.name:
            raise UserError(
                f"name={self.name!r} cannot be a folder below outputs/: give a name without .. and without any of "
                '\\ : * ? " < > |, that does not begin with . or /'
            )
        check_ranges(self)
        if self.init_from and self.ckpt_path:
            raise UserError(
                "init_from= loads only the weights of a run, ckpt_path= also the state of the optimizer and the step: "
                "give one of them"
            )
        if self.budget is not None:
            seconds(self.budget, "budget")
            if self.sft is not None:
                raise UserError(
                    "budget= is not read by SFT: leave budget= out, also in the file that experiment= names, and give "
                    "train.max_steps= or train.max_time="
                )
            if self.device.processes > 1:
                raise UserError(
                    f"budget= plans the training of one device, not of {self.device.processes}: train on one device, or choose "
                    "a model and give train.max_time= instead of budget="
                )
        if self.sft is not None and self.sft.packing and self.device.shards_weights:
            # the devices would need different numbers of micro-batches, and wait for each other forever
            raise UserError(
                "sft.packing=true cannot be combined with device.strategy=fsdp: give device.strategy=ddp, or leave out "
                "sft.packing"
            )
        eager = next((name for name, group in self._needing_whole_weights.items() if group is not None), None)
        if eager is not None and (self.device.shards_weights or self.device.compile):
            key = "strategy=fsdp" if self.device.shards_weights else "compile=true"
            needs_strategy = self.device.shards_weights and self.device.processes > 1
            remedy = "give device.strategy=ddp" if needs_strategy else f"leave device.{key} out"
            raise UserError(f"device.{key} is not supported by {command(eager)}: {remedy}")

    @property
    def window_tokens(self) -> int:
        """Return the number of tokens of a training window of text."""
        return self.data.window_of(self.model.context_length)

    @property
    def _needing_whole_weights(self) -> dict[str, PreferenceConfig | ReinforceConfig | DistillConfig | None]:
        """Return the settings of the commands that cannot train a compiled or sharded model, such as {"prefer": ..., ...}.

        These commands call parts of the model instead of the whole model, or generate texts with its weights. The value of a
        command is None if the run was not made by this command.
        """
        return {"prefer": self.preference, "reinforce": self.reinforce, "distill": self.distill}

    @property
    def is_tuning(self) -> bool:
        """Tell whether the run continues from the weights of a base run, with the architecture and tokenizer of that run."""
        return self._tuning is not None

    @property
    def lora(self) -> LoraConfig:
        """Return the settings of low-rank adapters (LoRA); `rank` is 0 if all weights are trained."""
        return LoraConfig() if self._tuning is None else self._tuning.lora

    @property
    def tuning_group(self) -> str:
        """Return the key of the tuning settings, "sft", "preference" or "reinforce", of a run that is tuned (`is_tuning`)."""
        groups = {"sft": self.sft, "preference": self.preference, "reinforce": self.reinforce}
        return next(name for name, group in groups.items() if group is not None)

    @property
    def _tuning(self) -> SFTConfig | PreferenceConfig | ReinforceConfig | None:
        return self.sft or self.preference or self.reinforce


@dataclass(frozen=True)
class Asked:
    """Hold which settings the user gave, and whether `budget=` also chooses the size of the model.

    `budget=` and the checks before a training need these facts. They are not part of RunConfig, and a run folder does
    not record them.
    """

    auto_size: bool = False  # with budget: choose the model's width and depth too (set by model=auto)
    # the rest of a budget may train a student, and a second run before it; not in a sweep
    trains_generations: bool = False
    given: dict[str, str] = field(
        default_factory=dict
    )  # key -> text of the settings that the user gave: a budget does not change them


def seconds(value: float | str, key: str = "train.max_time") -> float:
    """Return a time such as 90, "90s", "10m", "10min" or "2h" in seconds.

    Raises UserError, which names the setting `key`, for any other value.
    """
    text, units = str(value).strip(), {"s": 1, "min": 60, "m": 60, "h": 3600}
    unit = next((unit for unit in units if text.endswith(unit)), "")
    try:
        number = float(text.removesuffix(unit)) * units.get(unit, 1)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise UserError(
            f"{key}={value} is not a time: give a number of seconds above 0, or a number with a unit, such as 90s, 10m or 2h"
        )
    return number
