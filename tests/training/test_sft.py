"""Fine-tuning on conversations: the targets, the data, and runs that resume bit for bit."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from interop.saved_runs import imported_pieces
from tuning import assert_keeps_its_division, tuned

from positron.config import (
    DataConfig,
    GPTConfig,
    LoraConfig,
    OptimizerConfig,
    PreferenceConfig,
    RunConfig,
    SFTConfig,
    SweepConfig,
    TokenizerConfig,
)
from positron.data.conversations import Conversation, read_conversations
from positron.data.instruct import pack, to_parts, to_row
from positron.data.preferences import Pair
from positron.model.gpt import GPT
from positron.model.lora import add_lora, merge_lora
from positron.reinforce import _answers
from positron.run.checkpoint import load_checkpoint
from positron.run.facts import write_record
from positron.run.folder import Run
from positron.run.load import load_model
from positron.run.metrics import read_metrics
from positron.sft import configure, sft
from positron.system.errors import UserError
from positron.text import conversation
from positron.text.char_word import CharTokenizer, WordTokenizer
from positron.text.conversation import Message
from positron.text.factory import load_tokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, Tokenizer
from positron.train import train
from positron.training.objective.preference import PreferenceObjective
from positron.training.objective.reference import hash_of_weights
from positron.training.objective.sft import SFTObjective
from positron.training.objective.tokens import NextToken
from positron.training.resume import Start
from positron.training.tuning import _measure_forgetting, hash_of_checkpoint, replayed_run, replayed_text

TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvwxyz ?.<|>_\n")
BEGIN, SYSTEM, USER, ASSISTANT, END = (TOKENIZER.special_id(token) for token in SPECIALS)


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


def conversation_of(*turns: str, is_val: bool = False) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Message(roles[i % 2], text) for i, text in enumerate(turns)), is_val)


def test_the_template_and_its_mask_as_exact_lists() -> None:
    messages = [Message("system", "be"), Message("user", "a?"), Message("assistant", "b."), Message("user", "c")]
    got, scored = conversation.encode([*messages, Message("assistant", "d")], TOKENIZER)
    wanted = [
        *((BEGIN, False), (SYSTEM, False), (ids("b")[0], False), (ids("e")[0], False), (END, False)),
        *((USER, False), (ids("a")[0], False), (ids("?")[0], False), (END, False)),
        *((ASSISTANT, False), (ids("b")[0], True), (ids(".")[0], True), (END, True)),
        *((USER, False), (ids("c")[0], False), (END, False), (ASSISTANT, False), (ids("d")[0], True), (END, True)),
    ]
    assert list(zip(got, scored, strict=True)) == wanted
    assert conversation.prompt_ids(messages, TOKENIZER) == got[:-2]


def test_exact_batches_through_the_real_loader(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    records = [
        {"instruction": "say a", "input": "", "output": "a"},
        {"messages": [{"role": "user", "content": "b?"}, {"role": "assistant", "content": "bb"}]},
        {"instruction": "add", "input": "x y", "output": "z"},
    ]
    path.write_text("\n".join(map(json.dumps, records)) + "\n\n")
    conversations = [
        dataclasses.replace(t, is_val=False) for t in read_conversations(DataConfig("instruct", str(path)))
    ]
    data = instruct_data(
        [*conversations, conversation_of("q", "r", is_val=True)], context=32, batch_size=3, micro_batch_size=2
    )
    parts = data.train.batch(1)
    wanted = {}
    for question, answer in (("say a", "a"), ("b?", "bb"), ("add\n\nx y", "z")):
        whole = [BEGIN, USER, *ids(question), END, ASSISTANT, *ids(answer), END]
        targets = [-100] * (len(ids(question)) + 3) + [*ids(answer), END]
        wanted[tuple(whole[:-1])] = targets
    seen = {}
    for x, y in parts:
        assert x.shape == y.shape
        longest = max(len(row) for row in wanted if list(row) in [r[: len(row)] for r in x.tolist()])
        assert x.shape[1] == longest + longest % 2  # sixteenths of the context
        for row_x, row_y in zip(x.tolist(), y.tolist(), strict=True):
            length = max(i for i, token in enumerate(row_y) if token != -100) + 1
            assert set(row_y[length:]) <= {-100}
            seen[tuple(row_x[:length])] = row_y[:length]
    assert seen == wanted
    assert [len(x) for x, _ in parts] == [2, 1]


def test_replayed_windows_are_as_long_as_the_longest_conversation_of_their_step() -> None:
    class Replay:
        batch_size, document_start = 1, None

        def batch(self, step: int) -> torch.Tensor:
            return torch.arange(100, 133)[None]  # a window and its last target

    conversations = [conversation_of("a", "b" * n) for n in (2, 5, 9)]
    data = instruct_data(
        [*conversations, conversation_of("q", "r", is_val=True)], replay=Replay(), batch_size=4, micro_batch_size=4
    )
    ((x, y),) = data.train.batch(1)
    n = 4 + 9 + 1 - 1 + 1  # marks, question and answer of the longest
    (row,) = [i for i in range(4) if x[i, 0] == 100]
    assert x.shape == (4, n)
    assert x[row].tolist() == list(range(100, 100 + n))
    assert y[row].tolist() == list(range(101, 101 + n))


def test_samples_are_asked_with_the_system_message_and_the_first_question() -> None:
    messages = (Message("system", "be"), Message("user", "a?"), Message("assistant", "b."), Message("user", "c"))
    data = instruct_data([Conversation(messages, is_val) for is_val in (False, True)])
    asked = data.sample_prompt(None)
    assert asked.ids == conversation.prompt_ids(messages[:2], TOKENIZER)
    assert asked.shown == "a?\n\n"


def instruct_data(conversations: list[Conversation], **options: Any) -> SFTObjective:
    chosen = {"context": 32, "batch_size": 4, "micro_batch_size": 4, "seed": 0, "packing": False, "val_tokens": 1000}
    return SFTObjective(conversations, TOKENIZER, **{"replay": None, **chosen, **options})


def test_over_long_ones_lose_from_the_left_but_never_of_the_answer() -> None:
    context = 24
    row = to_row(conversation_of("a" * 100, "the answer."), TOKENIZER, context)
    assert row is not None
    x, y = row
    assert len(x) == context
    assert x[0] == BEGIN
    assert y[y != -100].tolist() == [*ids("the answer."), END]
    assert to_row(conversation_of("hi", "b" * 100), TOKENIZER, context) is None
    turns = to_row(conversation_of("one", "a long first answer", "two", "end"), TOKENIZER, context)
    assert turns is not None
    assert turns[1][turns[1] != -100].tolist() == [*ids("end"), END]  # of the first answer, only a part is in sight
    exact = to_row(conversation_of("a", "b" * (context - 4)), TOKENIZER, context)
    assert exact is not None
    assert (exact[1] != -100).sum() == context - 3


@given(st.lists(st.tuples(st.text("abc ?", max_size=20), st.text("abc .", max_size=20)), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_packing_and_padding_keep_every_conversation_whole(pairs: list[tuple[str, str]]) -> None:
    rows = [to_row(conversation_of(*pair), TOKENIZER, 48) for pair in pairs]
    usable = [row for row in rows if row is not None]
    wanted = sorted((x.tolist(), y.tolist()) for x, y in usable)
    for packed in (usable, pack(usable, 48)):
        targets = []
        for x, y in to_parts(packed, 48, 3, BEGIN):
            for row_x, row_y in zip(x.tolist(), y.tolist(), strict=True):
                starts = [i for i, token in enumerate(row_x) if token == BEGIN]
                for a, b in zip(starts, [*starts[1:], len(row_x)], strict=True):
                    if b - a > 1:  # a lone beginning is padding
                        targets.append((row_x[a:b], row_y[a:b]))
        assert sorted(targets) == wanted


def gradients(parts: list[tuple[torch.Tensor, torch.Tensor]], *, packing: bool = False) -> dict[str, torch.Tensor]:
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, context_length=64, d_model=16, n_layer=2, n_head=2)).double()
    objective = NextToken()
    objective.document_start = BEGIN if packing else None
    targets = sum(int(objective.count(part)) for part in parts)
    assert targets == sum(int((y != -100).sum()) for _, y in parts)
    for part in parts:
        (objective.loss(model, part) / targets).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


CONVERSATIONS = [conversation_of("a" * n, "b" * (2 * n % 9)) for n in range(1, 9)]


def test_one_large_micro_batch_and_many_small_ones_have_the_same_gradient() -> None:
    rows = [row for t in CONVERSATIONS if (row := to_row(t, TOKENIZER, 64)) is not None]
    whole, cut = (gradients(to_parts(rows, 64, micro, BEGIN)) for micro in (8, 1))
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-9, atol=1e-12)


def test_packed_conversations_learn_what_they_learn_alone() -> None:
    rows = [row for t in CONVERSATIONS if (row := to_row(t, TOKENIZER, 64)) is not None]
    packed = pack(rows, 64)
    assert len(packed) < len(rows) / 2
    alone = gradients(to_parts(rows, 64, 8, BEGIN))
    together = gradients(to_parts(packed, 64, 8, BEGIN), packing=True)
    for name in alone:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("markers", [(), (1, 7, 30)])
@pytest.mark.parametrize("tie", [True, False])
def test_lora_starts_from_the_model_trains_little_and_merges_to_the_same(tie: bool, markers: tuple[int, ...]) -> None:
    config = GPTConfig(
        vocab_size=50, context_length=16, d_model=16, n_layer=2, n_head=2, tie_embeddings=tie, activation="swiglu"
    )
    plain, model = GPT(config).double(), GPT(config).double()
    idx = torch.randint(0, 50, (2, 16))
    add_lora(model, 4, 0, markers)
    before = {name: table.clone() for name, table in plain.state_dict().items()}
    with torch.no_grad():
        torch.testing.assert_close(model(idx), plain(idx), rtol=0, atol=0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        model(idx, idx).backward()
        optimizer.step()
    assert not torch.allclose(model(idx), plain(idx))
    state = merge_lora(model.state_dict())
    assert set(state) == set(plain.state_dict())
    for name in ("wte.weight",) if tie else ("wte.weight", "lm_head.weight"):
        changed = (state[name] != before[name]).any(dim=1).nonzero().flatten().tolist()
        assert set(changed) <= set(markers)  # those of the input that the batch does not show stay
        assert bool(changed) == bool(markers) or name == "wte.weight"
    plain.load_state_dict(state)
    torch.testing.assert_close(model(idx), plain(idx), rtol=1e-12, atol=1e-12)


def chance_of_the_end(markers: tuple[int, ...]) -> float:
    """The probability of <|end|> where it belongs, after pretraining that never showed it and LoRA on one answer."""
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, context_length=64, d_model=16, n_layer=2, n_head=2))
    text = torch.tensor([[BEGIN, *ids("the cat sat on the mat and looked at the moon. ")]])

    def learn(x: torch.Tensor, y: torch.Tensor, steps: int, lr: float) -> None:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
        for _ in range(steps):
            optimizer.zero_grad()
            (model(x, y) / (y != -100).sum()).backward()
            optimizer.step()

    learn(text[:, :-1], text[:, 1:], 200, 1e-2)
    add_lora(model, 2, 0, markers)
    row = to_row(conversation_of("the cat?", "on the mat."), TOKENIZER, 64)
    assert row is not None
    x, y = (torch.from_numpy(part)[None] for part in row)
    learn(x, y, 60, 3e-3)
    assert y[0, -1] == END
    with torch.no_grad():
        return float(model(x).softmax(-1)[0, -1, END])


@pytest.mark.slow
def test_lora_learns_to_end_an_answer_though_pretraining_never_showed_how() -> None:
    without, with_markers = chance_of_the_end(()), chance_of_the_end((SYSTEM, USER, ASSISTANT, END))
    assert with_markers > 3 * without


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "contains no conversations"),
        ('{"instruction": "a", "output": "b"}\n{broken\n{broken\n', "line 2 is not JSON"),
        (
            '{"instruction": "a"}\n',
            r"line 1 has `instruction` but no field `output`: add it, or rename .* \(instruction\)",
        ),
        (
            '[{"messages": [{"role": "bot", "content": "b"}]}]',
            "entry 1 has a message with role 'bot': use one of system, user, assistant",
        ),
        ('{"messages": []}\n', "line 1 has an empty list in `messages`, not a list of messages"),
        ("[]\n[]\n", "line 1 is an empty list, not a conversation: correct or remove it"),
        ('{"messages": [{"role": "user"}]}\n', "line 1 has a message without `content`"),
        ("3\n", "line 1 is not an object"),
    ],
)
def test_malformed_files_are_named_by_line_and_field(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        read_conversations(DataConfig("instruct", str(path)))


def test_conversations_without_a_target_are_counted_and_all_of_them_refused(logged: list[str]) -> None:
    silent = Conversation((Message("user", "a"),), False)
    options = {
        "context": 32,
        "batch_size": 4,
        "micro_batch_size": 4,
        "seed": 0,
        "packing": False,
        "val_tokens": 10,
        "replay": None,
    }
    some = [conversation_of("a", "b"), conversation_of("c", "d", is_val=True), silent]
    SFTObjective(some, TOKENIZER, **options)
    assert logged[0].startswith("WARNING: 1 of 3 conversations have no answer to learn from")
    with pytest.raises(UserError, match="all 2 conversations have no answer to learn from"):
        SFTObjective([silent, silent], TOKENIZER, **options)


def test_the_sample_that_comes_with_positron_is_forty_good_examples() -> None:
    conversations = read_conversations(DataConfig("instruct", val_fraction=0.1))
    assert len(conversations) == 40
    assert any(t.is_val for t in conversations)
    assert any(len(t.messages) > 2 for t in conversations)
    assert any(t.messages[0].role == "system" for t in conversations)


@pytest.mark.slow
def test_validation_requests_are_combinations_that_training_never_has() -> None:
    conversations = read_conversations(DataConfig("story_instruct", examples=400, val_fraction=0.1))
    from positron.stories import parse

    sides: dict[bool, set[Any]] = {True: set(), False: set()}
    for t in conversations:
        (story,) = parse(t.messages[1].content)
        request = story.request
        sides[t.is_val].add((request.name, request.object, request.place))
    assert not sides[True] & sides[False]
    assert len(sides[True]) > 20


def objective_of(conversations: list[Conversation], tokenizer: Tokenizer) -> SFTObjective:
    return SFTObjective(
        conversations,
        tokenizer,
        context=2000,
        batch_size=2,
        micro_batch_size=2,
        seed=0,
        packing=False,
        val_tokens=10**6,
        replay=None,
    )


def test_what_the_answers_of_the_built_in_requests_hold_is_known() -> None:
    conversations = read_conversations(DataConfig("story_instruct", examples=40, val_fraction=0.3))
    text = sorted({c for t in conversations for m in t.messages for c in m.content})
    data = objective_of(conversations, CharTokenizer("".join(text)))
    held = [t for t in conversations if t.is_val]
    assert data.val_bytes == sum(len(t.messages[1].content.encode()) for t in held)
    assert data.val_bits == pytest.approx(sum(t.bits or 0 for t in held))


def test_answers_with_unknown_words_have_no_floor() -> None:
    conversations = read_conversations(DataConfig("story_instruct", examples=40, val_fraction=0.3))
    assert objective_of(conversations, WordTokenizer(["the", " "])).val_bits is None


@pytest.mark.parametrize(
    "create", [imported_pieces, lambda: WordTokenizer(["is", " "])], ids=["a space before each text", "unknown words"]
)
def test_the_bytes_of_answers_are_those_of_their_texts(tmp_path: Path, create: Callable[[], Tokenizer]) -> None:
    tokenizer, context = create(), 40
    longer = conversation_of("A?", "lost " * 60, "B?", "It is red.", is_val=True)  # its first answer does not fit
    both = [longer, conversation_of("C?", "Zoë is blue.", is_val=True)]
    settings = {"context": context, "batch_size": 4, "micro_batch_size": 4, "seed": 0, "val_tokens": 1000}
    sft_data = SFTObjective(both, tokenizer, packing=False, replay=None, **settings)
    pairs = [Pair(c.messages[:-1], c.messages[-1:], (Message("assistant", "No."),), True) for c in both]
    pairs[0] = dataclasses.replace(pairs[0], prompt=(Message("user", "D?"),))
    preferences = PreferenceObjective(pairs, tokenizer, PreferenceConfig("dpo"), **settings)
    text = _answers(tiny(tmp_path, model__context_length=context), both, tokenizer)
    size = len("It is red.Zoë is blue.".encode())
    measured: list[Any] = [
        (sft_data.val_parts, sft_data.val_bytes, sft_data.token_bytes),
        (preferences.val_parts, preferences.val_bytes, preferences.token_bytes),
        ([(text.x, text.y)], text.n_bytes, text.token_bytes),
    ]
    for parts, n_bytes, token_bytes in measured:
        targets = torch.cat([y[y != -100] for _, y in parts]).numpy()
        assert n_bytes == size
        assert token_bytes[targets].sum() == pytest.approx(size, rel=1e-12)
        assert sft_data.bytes_per_token == pytest.approx(size / len(targets))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretrained run and a file of short conversations."""
    folder = tmp_path_factory.mktemp("base")
    train(tiny(folder, train__max_steps=20, model__context_length=64, train__batch_tokens=1024), folder / "base")
    colours = ("red", "green", "blue", "white")
    records = [
        {"instruction": f"The {thing} {n}?", "output": f"It is {colours[(n + len(thing)) % 4]}."}
        for n in range(15)
        for thing in ("hat", "ball", "boat", "kite")
    ]
    (folder / "conversations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_a_fine_tuned_run_is_whole_and_leaves_the_base_alone(base: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in sorted((base / "base").rglob("*")) if p.is_file()}
    facts = sft(tuned(base), tmp_path / "run")
    assert facts.status == "finished"
    assert facts.base_bpb_before is not None
    assert facts.base_bpb_after is not None
    assert before == {p: p.read_bytes() for p in sorted((base / "base").rglob("*")) if p.is_file()}
    run = Run(tmp_path / "run")
    assert run.is_chat
    model, _, _ = load_model(run)
    assert model.config.context_length == 64
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize(
    ("replay_ratio", "batch"),
    [(0.2, "6 conversations and 2 pieces of the pretraining text"), (0.0, "8 conversations")],
)
def test_the_plan_counts_conversations_because_their_rows_are_padded(
    base: Path, tmp_path: Path, replay_ratio: float, batch: str
) -> None:
    # 512 tokens are 8 sequences of 64, in micro-batches of 4
    config = tuned(base, sft=SFTConfig(replay_ratio=replay_ratio))
    sft(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=1)), tmp_path / "run")
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"context 64; 12 steps of {batch} (4 sequences at a time); stopping at step 1\n" in log
    assert "8 sequences, 4 sequences at a time" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("replay_ratio", "plan"),
    [
        (0.2, "16 steps of 6 conversations and 2 pieces of the pretraining text"),
        (0.75, "48 steps of 2 conversations and 6 pieces of the pretraining text"),
        (0.0, "12 steps of 8 conversations"),
    ],
)
def test_the_default_steps_read_each_conversation_as_often_as_asked(
    base: Path, tmp_path: Path, replay_ratio: float, plan: str
) -> None:
    # 48 of the 60 conversations are for training, and 2 passes over them are asked for
    config = tuned(base, sft=SFTConfig(epochs=2, replay_ratio=replay_ratio))
    train = dataclasses.replace(config.train, max_steps="auto", stop_at=1)
    sft(dataclasses.replace(config, train=train), tmp_path / "run")
    assert plan in (tmp_path / "run" / "train.log").read_text()


def test_the_default_steps_do_not_count_conversations_that_are_too_long(base: Path, tmp_path: Path) -> None:
    long = "".join(json.dumps({"instruction": f"{n}?", "output": "no " * 30}) + "\n" for n in range(200))
    (tmp_path / "mixed.jsonl").write_text((base / "conversations.jsonl").read_text() + long)
    config = tuned(base, sft=SFTConfig(epochs=2, replay_ratio=0.0))
    train = dataclasses.replace(config.train, max_steps="auto", stop_at=1)
    data = dataclasses.replace(config.data, path=str(tmp_path / "mixed.jsonl"))
    sft(dataclasses.replace(config, train=train, data=data), tmp_path / "run")
    log = (tmp_path / "run" / "train.log").read_text()
    learned = int(re.findall(r"(\d+) conversations to learn from", log)[0])
    assert learned < 60
    assert f"{math.ceil(2 * learned / 8)} steps of 8 conversations" in log


def test_a_run_whose_length_was_given_in_epochs_can_be_extended(base: Path, tmp_path: Path) -> None:
    def config(epochs: float = 3.0, **length: Any) -> RunConfig:
        default = tuned(base, sft=SFTConfig(replay_ratio=0.0, patience=0, epochs=epochs))
        return dataclasses.replace(default, train=dataclasses.replace(default.train, **length))

    steps = sft(config(epochs=0.2, max_steps="auto"), tmp_path / "run").step
    assert steps is not None
    says = (
        f"replace sft.epochs= by train.extend=true and train.max_steps= above {steps} to train longer, or another name="
    )
    with pytest.raises(
        UserError, match=re.escape(f"(sft.epochs: 0.2 -> 0.4): give the same settings as before, or {says}")
    ):
        sft(config(epochs=0.4, max_steps="auto", extend=True), tmp_path / "run")
    longer = config(max_steps=steps + 1, extend=True)
    assert sft(longer, tmp_path / "run").step == steps + 1
    assert sft(longer, tmp_path / "run").step == steps + 1


def test_an_extended_run_measures_its_new_weights_on_the_pretraining_text(base: Path, tmp_path: Path) -> None:
    config = tuned(base)
    first = sft(config, tmp_path / "run")
    longer = dataclasses.replace(config.train, max_steps=config.train.max_steps + 5, extend=True)
    again = sft(dataclasses.replace(config, train=longer), tmp_path / "run")
    assert (first.base_bpb_before, again.status) == (again.base_bpb_before, "finished")
    assert first.base_bpb_after != again.base_bpb_after
    fresh = sft(dataclasses.replace(config, init_from=str(tmp_path / "run")), tmp_path / "next")
    assert fresh.base_bpb_before == again.base_bpb_after  # known, and not computed again
    log = (tmp_path / "next" / "train.log").read_text()
    assert "measuring the loss on the pretraining text after this training" in log


def test_the_loss_before_the_training_is_never_that_of_other_weights(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "base", tmp_path / "base")
    config = tuned(base, init_from=str(tmp_path / "base"), sft=SFTConfig(replay_ratio=0.0))
    sft(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=2)), tmp_path / "run")
    weights = tmp_path / "base" / "checkpoints" / "best.ckpt"
    weights.rename(tmp_path / "kept.ckpt")
    shutil.copy(tmp_path / "run" / "checkpoints" / "best.ckpt", weights)
    facts = sft(config, tmp_path / "run")
    assert (facts.status, facts.base_bpb_before, facts.base_bpb_after) == ("finished", None, None)
    assert "have changed since this run began" in (tmp_path / "run" / "train.log").read_text()
    (tmp_path / "kept.ckpt").replace(weights)
    facts = sft(config, tmp_path / "run")
    assert None not in (facts.base_bpb_before, facts.base_bpb_after)


def test_the_loss_on_the_pretraining_text_is_measured_per_byte_of_the_original_text(tmp_path: Path) -> None:
    choice = TokenizerConfig("word", 30)  # most words are <unk>
    steps = {"train__max_steps": 1, "train__val_tokens": 100_000}
    config = tiny(tmp_path, tokenizer=choice, data__size_mb=0.02, **steps)
    pretrained = train(config, tmp_path / "base")
    run = Run(tmp_path / "base")
    _measure_forgetting(run, load_tokenizer(run.tokenizer_folder), tuned(tmp_path))
    assert run.facts().base_bpb_before == pytest.approx(pretrained.best_bpb, rel=1e-6)


@pytest.mark.parametrize("is_masked", [True, False])
def test_the_pretraining_text_is_read_as_in_pretraining(base: Path, tmp_path: Path, is_masked: bool) -> None:
    shutil.copytree(base / "base", tmp_path / "base")
    run = Run(tmp_path / "base")
    stored = json.loads(run.config_path.read_text())
    data = {**stored["data"], "document_mask": is_masked, "packing": "documents" if is_masked else "windows"}
    write_record(run.config_path, {key: value for key, value in {**stored, "data": data}.items() if key != "checksum"})
    tokenizer = load_tokenizer(run.tokenizer_folder)
    begin = tokenizer.special_id(END_OF_TEXT)
    replay = replayed_text(
        run, tuned(base), Start(), "sft.replay_ratio", tokenizer, rows=4, context=stored["model"]["context_length"]
    )
    rows = replay.batch(1)
    assert (replay.starts is not None) == is_masked, "windows begin at documents"
    conversations = [conversation_of("a", "b", is_val=is_val) for is_val in (False, True)]
    objective = instruct_data(conversations, replay=replay, batch_size=8)
    documents = objective.documents(rows)
    assert (documents is None) != is_masked
    if documents is not None:
        assert torch.equal(documents, (rows == begin).cumsum(dim=1))


def test_an_imported_model_has_no_text_to_replay_however_small_the_batch(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "base", tmp_path / "imported")
    path = tmp_path / "imported" / "config.json"
    stored = json.loads(path.read_text())
    del stored["checksum"]
    path.write_text(json.dumps({**stored, "data": {"source": "imported"}}))
    assert replayed_run(tuned(base, init_from=str(tmp_path / "imported")), Start(), "sft.replay_ratio") is None


def test_a_fine_tuning_in_chunks_is_bit_identical_to_one_in_one_piece(base: Path, tmp_path: Path) -> None:
    config = tuned(base)
    sft(config, tmp_path / "whole")
    for stop in (5, 8, None):
        part = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=stop))
        sft(part, tmp_path / "parts")

    def trace(name: str) -> list[Any]:
        return [
            (r["train/loss"], r.get("val/bpb"))
            for r in read_metrics(tmp_path / name / "metrics.jsonl")
            if r["step"] not in (5, 8)
        ]

    assert trace("whole") == trace("parts")
    a, b = (load_model(Run(tmp_path / name))[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_run_of_an_older_version_keeps_its_division_by_first_questions(base: Path, tmp_path: Path) -> None:
    assert_keeps_its_division(sft, tuned(base), {"completion": "It is red."}, tmp_path)


def test_a_lora_run_of_an_older_version_continues_without_rows_of_markers(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tuned(base, name="old", sft=SFTConfig(lora=LoraConfig(rank=2, markers=False), patience=0))
    folder = tmp_path / "outputs" / "old"
    sft(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=6)), folder)
    stored = json.loads((folder / "config.json").read_text())
    del stored["checksum"], stored["sft"]["lora"]["markers"]  # as it was written then
    (folder / "config.json").write_text(json.dumps(stored))
    monkeypatch.chdir(tmp_path)
    values = {**dataclasses.asdict(config), "model": None, "tokenizer": None}
    values["sft"]["lora"]["markers"] = True
    assert sft(configure(values), folder).status == "finished"


def test_lora_runs_resume_and_load_as_plain_models(base: Path, tmp_path: Path) -> None:
    config = tuned(base, sft=SFTConfig(lora=LoraConfig(rank=2), patience=0))
    for stop in (6, None):
        facts = sft(
            dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=stop)), tmp_path / "run"
        )
    assert facts.status == "finished"
    model, tokenizer, _ = load_model(Run(tmp_path / "run"))
    untouched = load_model(Run(base / "base"))[0]
    changed = (model.wte.weight != untouched.wte.weight).any(dim=1).nonzero().flatten().tolist()
    assert tokenizer.special_id(conversation.END) in changed
    assert set(changed) <= {tokenizer.special_id(token) for token in (conversation.END, *conversation.MARKERS)}
    assert not torch.equal(model.blocks[0].attn.q.weight, untouched.blocks[0].attn.q.weight)
    from safetensors.numpy import load_file

    exported = load_file(tmp_path / "run" / "model" / "weights.safetensors")
    np.testing.assert_array_equal(
        exported["blocks.0.attn.q.weight"], model.state_dict()["blocks.0.attn.q.weight"].numpy()
    )


def test_the_hash_of_lora_weights_does_not_depend_on_how_a_processor_multiplies(base: Path, tmp_path: Path) -> None:
    config = tuned(base, sft=SFTConfig(lora=LoraConfig(rank=2), patience=0))
    sft(dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=2)), tmp_path / "run")
    model, _, path = load_model(Run(tmp_path / "run"))
    stored = {name.removeprefix("model."): value for name, value in load_checkpoint(path)["state_dict"].items()}
    assert any(name.endswith("lora_b") for name in stored)
    own, former = hash_of_weights(stored), hash_of_weights(model.state_dict())
    assert hash_of_checkpoint(path) == hash_of_checkpoint(path, [own, "another"]) == own != former
    assert hash_of_checkpoint(path, [former]) == former, "a run of an earlier version continues"


def test_an_early_stop_ends_the_run_for_good(base: Path, tmp_path: Path) -> None:
    config = tuned(base, sft=SFTConfig(patience=2), optimizer=OptimizerConfig(lr=0.1))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=40, val_every=1))
    facts = sft(config, tmp_path / "run")
    assert facts.status == "finished"
    assert facts.step < 40
    again = sft(config, tmp_path / "run")
    assert again.step == facts.step


@pytest.mark.parametrize("end", ["early stopping", pytest.param("pruning", marks=pytest.mark.slow)])
def test_a_command_for_a_run_that_was_ended_early_changes_no_record_of_it(end: str, base: Path, tmp_path: Path) -> None:
    config = tuned(base, sft=SFTConfig(patience=2 * (end == "early stopping")), optimizer=OptimizerConfig(lr=0.1))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=20, val_every=1, stop_at=12))
    run = Run(tmp_path / "run")
    sft(config, run.folder)
    if end == "pruning":
        config = dataclasses.replace(config, sweep=SweepConfig(prune="median"))
        run.update(status="pruned", base_bpb_before=2.0, base_bpb_after=2.1)
    assert run.facts().step < 20
    before = run.config(), dataclasses.replace(run.facts(), updated=None)
    longer = dataclasses.replace(config.train, max_steps=50, stop_at=None, extend=True)
    for again in (config.train, longer, config.train):
        sft(dataclasses.replace(config, train=again), run.folder)
        assert (run.config(), dataclasses.replace(run.facts(), updated=None)) == before
    assert run.log_path.read_text().count("nothing to do: ") == 3


@pytest.mark.slow
def test_an_early_stop_comes_at_the_same_step_wherever_the_run_was_stopped_before(base: Path, tmp_path: Path) -> None:
    """A run is also validated where it is stopped: these validations must not count."""
    config = tuned(base, sft=SFTConfig(patience=2), optimizer=OptimizerConfig(lr=0.1))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=60, val_every=3))
    whole = sft(config, tmp_path / "whole")
    assert 6 < whole.step < 60
    for stop_at in (whole.step - 2, whole.step - 1, None):
        part = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=stop_at))
        stopped = sft(part, tmp_path / "stopped")
    assert stopped.step == whole.step
    assert stopped.status == whole.status == "finished"
    rows = read_metrics(Run(tmp_path / "stopped").metrics_path)
    assert {row["step"] for row in rows if "val/bpb" in row} > {whole.step - 2, whole.step - 1}


@pytest.mark.slow
def test_answers_learnt_by_heart_end_by_themselves(tmp_path: Path) -> None:
    """Eight conversations, learnt until they are known: greedy answers are exact, and stop."""
    from positron.inference.engine import Engine
    from positron.inference.sampling import Sampling

    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, context_length=32, d_model=64, n_layer=2, n_head=4), seed=1)
    conversations = [conversation_of(f"{c} ?", f"{c * 3} is {c}.") for c in "abcdefgh"]
    rows = [row for t in conversations if (row := to_row(t, TOKENIZER, 32)) is not None]
    ((x, y),) = to_parts(rows, 32, 8, BEGIN)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (model(x, y) / (y != -100).sum()).backward()
        optimizer.step()
    engine = Engine(model.eval(), TOKENIZER)
    for t in conversations:
        prompt = conversation.prompt_ids(t.messages[:1], TOKENIZER)
        stops = conversation.stop_ids(TOKENIZER)
        answer = "".join(engine.stream(prompt, Sampling(temperature=0), max_tokens=30, stop_ids=stops))
        assert answer == t.messages[1].content


def test_the_sft_command_and_its_mistakes(base: Path, tmp_path: Path, run_command: Callable[..., Any]) -> None:
    folder = tmp_path / "outputs" / "b"
    folder.parent.mkdir()
    shutil.copytree(base / "base", folder)
    shutil.copy(base / "conversations.jsonl", tmp_path)
    data = ("data=instruct", "data.path=conversations.jsonl", "data.val_fraction=0.2")
    sizes = ("train.max_steps=2", "train.batch_tokens=512", "train.sample_tokens=4", *data)
    fast = (*sizes, "device=cpu", "precision=fp32", "name=s")
    made = run_command("sft", *fast)
    assert made.code == 0, made.err
    assert "-m positron.chat --run outputs/s" in made.out
    assert "on the pretraining text:" in made.out
    for wrong, said in (
        (("data.path=nowhere.jsonl",), "cannot read data.path=nowhere.jsonl"),
        (("init_from=nothing",), "no run nothing"),
        (("sft.lora.rank=-1",), "sft.lora.rank=-1"),
        (("sft.epochs=0",), "sft.epochs=0"),
        (("sft.lorra=1",), "did you mean"),
        (("data.source=stories",), "SFT learns from conversations"),
        (("sft.lora.rank=2",), "was trained with other settings"),
    ):
        failed = run_command("sft", *fast[:-1], *wrong, "name=s" if "lora.rank=2" in wrong[0] else "name=w")
        assert failed.code == 2, failed.err
        assert said in failed.err.splitlines()[-1]
