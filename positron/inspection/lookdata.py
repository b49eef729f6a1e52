"""Define typed dicts for the data that the inspector shows. The dicts are written as JSON.

The inspector is the page *Look inside*. The dicts contain all data that this page shows about a run. `positron look --json`
prints such a dict. The server's answers to `/api/look`, `/api/truth` and `/api/history` are such dicts. The single HTML file
also contains them. Numbers are finite; a number that does not exist is null (None).

T is the number of tokens of the prompt, including the `<|endoftext|>` that begins every document. L is the number of layers, H
the number of heads, and V the size of the vocabulary. Layers, heads and positions are counted from 0. In the lists of L + 1
entries, entry 0 belongs to the residual stream before the first block (the embeddings), and entry i + 1 to the residual stream
after block i. Probabilities are at temperature 1; bits are -log2 of a probability.
"""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from positron.stories.following import Group

Part = Literal["attn", "mlp"]  # a part of a block


class Ablation(TypedDict):
    """Name a part of the model whose output is replaced by zeros: a head, or the attention or the MLP of a block."""

    layer: int  # 0 to L - 1
    part: int | Part  # number of a head, 0 to H - 1; or "attn" or "mlp", the whole attention or MLP of the block


class Token(TypedDict):
    """Describe a token of the prompt, and the probability of this token after the tokens before it."""

    id: int
    text: str  # the token's text, with U+FFFD for a part of a character; or a special token's name, such as "<|endoftext|>"
    special: bool  # whether `text` is the name of a special token
    p: float | None  # probability; None for the first token, which is given
    rank: int | None  # 1 for the most probable token, 2 for the next, and so on
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
    entropy: float  # in bits


class Lens(TypedDict):
    """Describe the prediction of the logit lens at one position, before the first block or after one of the blocks.

    The logit lens applies the final norm and the output matrix to the residual stream at this place in the model.
    """

    top: list[Candidate]  # the most probable tokens, best first
    p: float | None  # probability of the token that came next; None at the last position
    entropy: float  # in bits


class Focus(TypedDict):
    """Hold the next-token logits at one position, from which a page computes probabilities for any temperature and top-p."""

    position: int  # 0 to T - 1
    top: list[Candidate]  # the most probable tokens, in the order of `logits`, at most 50
    # (V,) in descending order. All may be shifted by the same constant, which does not change the probabilities
    # softmax(logits / temperature).
    logits: list[float]


class HeadScore(TypedDict):
    """Hold the scores of one head, which do not depend on the prompt.

    `previous`, `induction` and `first` are measured on repeated random tokens. The other scores are measured on validation
    text, and are None if there is no validation text.
    """

    previous: float  # 0 to 1: mean attention to the token just before
    induction: float  # 0 to 1: mean attention to the token after the earlier occurrence of the same token
    first: float  # 0 to 1: mean attention to the first token
    text_previous: float | None  # 0 to 1: the same as `previous`, on text
    # 0 to 1: mean attention, on text, from a token to all tokens that followed earlier occurrences of the same token; to be
    # compared with `Scores.text_chance`
    text_induction: float | None
    cost: float | None  # increase of the loss without this head, in bits per token


class Scores(TypedDict):
    """Hold the measured scores of all heads, and how they were measured."""

    heads: list[list[HeadScore]]  # (L, H)
    attn: list[float | None]  # (L,) increase of the validation loss without a block's attention, bits per token
    mlp: list[float | None]  # (L,) the same without the block's MLP
    repeated: int  # number of random tokens in a sequence, which contains all of them twice in the same order
    sequences: int  # number of sequences of repeated random tokens
    validation: int  # number of scored tokens of validation text; 0 without such text
    # the `text_induction` (see `HeadScore`) of a head that attends to all keys equally; None without validation text
    text_chance: float | None
    bits: float | None  # loss of the whole model on the scored tokens of validation text, in bits per token


class Shape(TypedDict):
    """Hold the dimensions of the model and its number of parameters."""

    n_layer: int
    n_head: int
    n_kv_head: int
    d_model: int
    vocab_size: int
    context_length: int  # the largest number of tokens that the model reads at once
    parameters: int


class AblationResult(TypedDict):
    """Compare the loss on the prompt with and without the ablations."""

    ablations: list[Ablation]
    # loss without ablations, in bits per token, over all tokens of the prompt except the first; None for a single token
    before: float | None
    after: float | None  # the same loss with the ablations


class LookData(TypedDict):
    """Hold all data about a model and a prompt.

    If parts are ablated, all values are those of the ablated model, except `shape`, `scores` and the loss `ablation["before"]`.

    `attention` has L lists (H, T, t + 1). Row t of a head has the attention weights of the keys 0 to t, whose sum is 1. The
    entry of a layer is None if the layer was not asked for, or if the answer would be too large.
    """

    version: Literal[1]
    run: str  # name of the run
    step: int  # number of optimizer steps after which the weights were saved
    shape: Shape
    prompt: str
    chats: bool  # whether the prompt is a message; if so, `tokens` include those of the chat template
    tokens: list[Token]  # (T,)
    next: list[Prediction]  # (T,); entry t is the distribution of token t + 1
    focus: Focus  # all logits of the next token at one position
    attention: list[list[list[list[float]]] | None]
    residual: list[list[float]]  # (L + 1, T) root mean square of the residual stream
    lens: list[list[Lens]]  # (L + 1, T) predictions of the logit lens; lens[L] are the predictions of the model itself
    ablation: AblationResult | None  # None if nothing is ablated
    scores: Scores | None  # None if not requested
    continuation: str | None  # text that the model writes after the prompt, or its answer; None if not requested


class Continuation(TypedDict):
    """Hold the settings with which the model writes a continuation of the prompt.

    The defaults are `max_tokens` 100, `seed` 0, and the values of the sampling preset `balanced` for the other settings.
    """

    max_tokens: NotRequired[int]
    seed: NotRequired[int]
    temperature: NotRequired[float]
    top_p: NotRequired[float]
    top_k: NotRequired[int]
    min_p: NotRequired[float]
    repetition_penalty: NotRequired[float]


class LookRequest(TypedDict):
    """Hold the JSON body of a POST request to `/api/look`."""

    run: NotRequired[str]  # name of a run from /v1/models; not needed if the server has only one run
    prompt: str
    step: NotRequired[int | None]  # a step from /api/history; None: the best checkpoint
    # heads, attention layers and MLPs whose output is replaced by zeros; default: none
    ablations: NotRequired[list[Ablation]]
    top: NotRequired[int]  # number of likeliest next tokens that are returned for each position, 1 to 50; default 10
    # position after which the whole distribution of the next token is returned; default: the last position
    focus: NotRequired[int | None]
    attention: NotRequired[list[int] | None]  # layers whose attention is returned; default: all
    scores: NotRequired[bool]  # whether to return the scores of the heads; default: false; measuring them takes seconds
    continuation: NotRequired[Continuation | None]  # sampling settings; None (the default): generate no continuation


class HistoryPoint(TypedDict):
    """Describe a step of training whose weights were kept (train.keep_history), with the loss at this step."""

    step: int
    tokens: int | None  # number of training tokens up to this step
    val_bpb: float | None  # bits per byte at the last validation up to this step


class HistoryData(TypedDict):
    """List the steps of a run whose weights were kept during training: the answer to `GET /api/history?run=NAME`."""

    run: str
    points: list[HistoryPoint]  # earliest first; empty if the run was trained with train.keep_history=0
    best: (
        int  # the step of the best checkpoint; if a request names no step, it is answered with the weights of this step
    )


class TruthToken(TypedDict):
    """Hold the model's and the grammar's probability of one token of the prompt, given the tokens before it.

    The grammar is that of the built-in stories, whose probabilities are exact. A slot of the grammar is a part of a story whose
    value is drawn, such as the hero. `true` is None for the first token, for the first token that the grammar does not allow,
    and for all tokens after that token.
    """

    id: int
    text: str
    special: bool
    model: float | None  # probability; None for the first token
    true: float | None  # probability in the grammar
    regret: float | None  # bits: log2(true / model), the model's surprise minus the true surprise
    group: Group | None  # kind of grammar rule that produced the token; None where `true` is None
    rule: str | None  # name of a word list, such as color, or of a slot, such as hero; otherwise equal to `group`


class TruthCandidate(TypedDict):
    """Hold a possible next token with its probabilities in the model and in the grammar."""

    id: int
    text: str
    special: bool
    model: float
    true: float


class TruthPrediction(TypedDict):
    """Compare the model's and the grammar's distribution of the token that follows one position of the prompt."""

    top: list[TruthCandidate]  # tokens that the grammar allows, the most probable first
    allowed: int  # number of tokens that the grammar allows
    entropy: float  # entropy of the grammar's distribution in bits: the lowest possible expected loss
    regret: float  # expected loss above this entropy, in bits: KL(grammar || model)
    outside: float  # probability that the model gives to tokens that the grammar does not allow


class RuleRegret(TypedDict):
    """Hold the sum of the regrets of all tokens that one grammar rule produced.

    The regret of a token is its surprise (-log2 p) in the model, minus its surprise under the grammar's exact probabilities.
    """

    group: Group
    rule: str
    tokens: int
    true_bits: float  # sum of the surprises under the exact probabilities
    model_bits: float  # sum of the surprises in the model
    regret: float  # in bits: model_bits - true_bits; on few tokens, it may be negative by chance


class Departure(TypedDict):
    """Describe the first token of a prompt that no tokenized story contains at this position.

    `reason` is "text" if no story continues with the text from this token to the end of the prompt. It is "tokens" if this text
    is the beginning of a word that a story may contain here. Then the text is allowed, but the tokens are not: the whole word
    is divided into other tokens. Therefore their exact probabilities are unknown.
    """

    token: int  # index of the token
    character: int  # index of the character of the prompt at which this token begins
    reason: Literal["text", "tokens"]
    message: str  # description for people
    expected: list[str]  # some words that a story may contain here, without white space, the most probable first


class TruthData(TypedDict):
    """Hold the comparison of a model with the grammar of the built-in stories on a prompt.

    This dict is the answer to `POST /api/truth`, a request with the fields run, prompt, step and top (see `LookRequest`).
    """

    version: Literal[1]
    run: str
    step: int
    prompt: str
    tokens: list[TruthToken]  # (T,)
    # (T,): the distribution of the token after each position. None where the grammar allows no next token, and after the first
    # token that the grammar does not allow (`departure`) and each later one
    next: list[TruthPrediction | None]
    departure: Departure | None  # None if the grammar allows all tokens of the prompt
    # for each grammar rule: the loss of the model minus the loss of the exact probabilities; the largest difference first
    rules: list[RuleRegret]


class RulesAtStep(TypedDict):
    """Hold the regret of each grammar rule for the weights of one step of training.

    The regret of a rule is the loss of the model minus the loss of the exact probabilities, in bits, on the tokens that the
    rule produced (see `RuleRegret`).
    """

    step: int
    rules: list[RuleRegret]  # the same rules in the same order at every step


class RegretHistory(TypedDict):
    """Hold the regret of each grammar rule (see `RuleRegret`) at each step whose weights are available.

    These are the steps at which the run kept its weights, and the step of the best checkpoint. This dict is the answer to `GET
    /api/truth?run=NAME`.
    """

    run: str
    stories: int  # number of validation stories on which the regrets are measured
    tokens: int | None  # number of tokens of each story that are read; None if all stories are read to their ends
    points: list[RulesAtStep]  # one for each step, the earliest first
