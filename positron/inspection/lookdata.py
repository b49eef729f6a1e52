"""Define what the inspector shows, as typed dicts that are written as JSON.

`positron look --json`, the server's `/api/look`, `/api/truth` and `/api/history`, and the single HTML file all produce these
dicts, and the page reads nothing else. Numbers are finite; a number that does not exist is null (None).

Shapes: T tokens including the `<|endoftext|>` that begins every document, L layers, H heads, V vocabulary. Layers and heads
are counted from 0. In the lists of L + 1 entries, entry 0 is the residual stream before the first block (the embeddings), and
entry i + 1 the residual stream after block i. Probabilities are at temperature 1; bits are -log2 of a probability.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from positron.stories.following import Group

Part = Literal["attn", "mlp"]  # of a block


class Ablation(TypedDict):
    """Name a part of the model whose output is replaced by zeros: a head, or the attention or the MLP of a block."""

    layer: int  # 0 to L - 1
    part: int | Part  # a head, 0 to H - 1; or "attn" or "mlp", of which the bias is zeroed too


class Token(TypedDict):
    """Describe a token of the prompt and the probability that it had, given the tokens before it."""

    id: int
    text: str  # with U+FFFD for a part of a character; the name, such as "<|endoftext|>", of a special token
    special: bool  # whether `text` is the name of a special token
    p: float | None  # probability; None for the first token, which is given
    rank: int | None  # 1 if no token was more probable
    bits: float | None  # surprise, -log2 p


class Candidate(TypedDict):
    """Hold a possible next token with its probability."""

    id: int
    text: str
    special: bool
    p: float


class Prediction(TypedDict):
    """Describe the distribution of the token that follows a position."""

    top: list[Candidate]  # the most probable tokens, best first
    entropy: float  # bits


class Lens(TypedDict):
    """Describe the prediction that the residual stream would give at one depth and position (logit lens).

    The final norm and the output matrix are applied to it, as they are to the output of the last block.
    """

    top: list[Candidate]  # the most probable tokens, best first
    p: float | None  # probability of the token that came next; None at the last position
    entropy: float  # bits


class Focus(TypedDict):
    """Hold the logits of one position, from which a page computes the probabilities for any temperature and top-p."""

    position: int  # 0 to T - 1
    top: list[Candidate]  # the most probable tokens, in the order of `logits`, at most 50
    logits: list[float]  # (V,) descending; softmax(logits / temperature) gives the probabilities


class HeadScore(TypedDict):
    """Hold what was measured for one head. Nothing in it depends on the prompt.

    The first three are measured on repeated random tokens. The others are measured on validation text, and are None without it.
    """

    previous: float  # 0 to 1: mean attention to the token just before
    induction: float  # 0 to 1: mean attention to the token after the earlier occurrence of the same token
    first: float  # 0 to 1: mean attention to the first token
    text_previous: float | None  # 0 to 1: as `previous`
    text_induction: float | None  # 0 to 1: as `induction`, summed over all earlier occurrences; compare text_chance
    cost: float | None  # bits per token that the loss rises by without this head


class Scores(TypedDict):
    """Hold the measured scores of all heads, and how they were measured."""

    heads: list[list[HeadScore]]  # (L, H)
    attn: list[float | None]  # (L,) bits per token that the validation loss rises by without the attention of a block
    mlp: list[float | None]  # (L,) the same without the MLP
    repeated: int  # random tokens that were repeated once, for previous, induction and first
    sequences: int  # number of such sequences
    validation: int  # scored tokens of validation text; 0 if there is none
    text_chance: float | None  # the text_induction of a head that attends to all keys alike
    bits: float | None  # bits per token on these tokens, nothing ablated


class Shape(TypedDict):
    """Hold the sizes of the model that the page needs."""

    n_layer: int
    n_head: int
    n_kv_head: int
    d_model: int
    vocab_size: int
    context_length: int  # the largest T
    parameters: int


class AblationResult(TypedDict):
    """Compare the loss on the prompt with and without the ablations."""

    ablations: list[Ablation]
    before: float | None  # bits per token of the prompt, the first excluded; None if T = 1
    after: float | None


class LookData(TypedDict):
    """Hold everything about a model and a prompt. All values are those of the model with `ablations`."""

    version: Literal[1]
    run: str  # name of the run
    step: int  # optimizer steps of the weights
    shape: Shape
    prompt: str
    chats: bool  # whether the prompt is a message; `tokens` are then those of the chat template around it
    tokens: list[Token]  # (T,)
    next: list[Prediction]  # (T,); entry t is the distribution of token t + 1
    focus: Focus
    # (L, H, T, t + 1): row t has the weights of the keys 0 to t, with the sum 1; None for a layer that was not asked for, or
    # that would make the answer too large
    attention: list[list[list[list[float]]] | None]
    residual: list[list[float]]  # (L + 1, T) root mean square of the residual stream
    lens: list[list[Lens]]  # (L + 1, T); the last one is the prediction of the model itself
    ablation: AblationResult | None  # None if nothing is ablated
    scores: Scores | None  # None if they were not asked for
    continuation: str | None  # text that the model writes after the prompt, or its answer; None if it was not asked for


class Continuation(TypedDict):
    """Hold the settings of a text that continues the prompt.

    Defaults: `max_tokens` 100, `seed` 0, and the preset `balanced` for the others.
    """

    max_tokens: NotRequired[int]
    seed: NotRequired[int]
    temperature: NotRequired[float]
    top_p: NotRequired[float]
    top_k: NotRequired[int]
    min_p: NotRequired[float]
    repetition_penalty: NotRequired[float]


class LookRequest(TypedDict):
    """Ask `/api/look` by POST, as JSON."""

    run: NotRequired[str]  # one of /v1/models; may be left out if the server has one run
    prompt: str
    step: NotRequired[int | None]  # of /api/history; None: the best checkpoint
    ablations: NotRequired[list[Ablation]]
    top: NotRequired[int]  # candidates per prediction, 1 to 50, default 10
    focus: NotRequired[int | None]  # position, default the last one
    attention: NotRequired[list[int] | None]  # layers, default all
    scores: NotRequired[bool]  # default false; they take seconds the first time
    continuation: NotRequired[Continuation | None]


class HistoryPoint(TypedDict):
    """Describe weights that were kept during training."""

    step: int
    tokens: int | None  # of training
    val_bpb: float | None  # of the last validation up to this step


class HistoryData(TypedDict):
    """List the kept weights of a run, earliest first. `GET /api/history?run=NAME`."""

    run: str
    points: list[HistoryPoint]  # empty if the run was trained with train.keep_history=0
    best: int  # the step of the best checkpoint, which is used without a step


class TruthToken(TypedDict):
    """Compare the probabilities of a token of the prompt by the model and by the grammar, given the tokens before it."""

    id: int
    text: str
    special: bool
    model: float | None  # probability; None for the first token
    true: float | None  # probability by the grammar; None for the first token, and from the departure on
    regret: float | None  # bits: log2(true / model), the model's surprise minus the true surprise
    group: Group | None  # the kind of rule that the token comes from; None where `true` is None
    rule: str | None  # which one: the list (color), the slot (hero, thing, place, grown, friend), otherwise the group


class TruthCandidate(TypedDict):
    """Hold a possible next token with both probabilities."""

    id: int
    text: str
    special: bool
    model: float
    true: float


class TruthPrediction(TypedDict):
    """Compare the distributions of the token that follows a position."""

    top: list[TruthCandidate]  # of the tokens that the grammar allows, the most probable first
    allowed: int  # number of tokens that the grammar allows
    entropy: float  # bits, of the grammar's distribution: the least possible expected surprise
    regret: float  # bits that the model is expected to lose here: KL(grammar || model)
    outside: float  # probability that the model gives to tokens that the grammar does not allow


class RuleRegret(TypedDict):
    """Sum the regret over the tokens of one rule."""

    group: Group
    rule: str
    tokens: int
    true_bits: float  # the least possible surprise
    model_bits: float
    regret: float  # bits: model_bits - true_bits; may be negative by luck on few tokens


class Departure(TypedDict):
    """Say where a prompt leaves the grammar."""

    token: int  # index of the first token that cannot occur in a story
    character: int  # of the prompt, where this token begins
    reason: Literal["text", "tokens"]  # "tokens": the text may occur, but no story is cut into these tokens there
    message: str  # for people
    expected: list[str]  # some beginnings of words that a story may contain there, most probable first


class TruthData(TypedDict):
    """Compare a model with the grammar of the built-in stories on a prompt. `POST /api/truth` with run, prompt, step, top."""

    version: Literal[1]
    run: str
    step: int
    prompt: str
    tokens: list[TruthToken]  # (T,)
    next: list[TruthPrediction | None]  # (T,); None from the departure on
    departure: Departure | None
    rules: list[RuleRegret]  # of the prompt, by descending regret


class RulesAtStep(TypedDict):
    """Hold the regret by rule of the weights of one step."""

    step: int
    rules: list[RuleRegret]  # the same rules in the same order at every step


class RegretHistory(TypedDict):
    """Follow the regret per rule over the history of a run. `GET /api/truth?run=NAME`."""

    run: str
    stories: int  # validation stories that it is measured on
    points: list[RulesAtStep]  # earliest first; the last point is the best checkpoint if it is not among the kept ones
