"""Pairs of answers: every usual format gives the same pairs, bad rows are named, and story pairs differ in one point."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from positron import stories
from positron.config import DataConfig
from positron.data.preferences import read_pairs, story_pairs, violated
from positron.system.errors import UserError
from positron.system.log import screen_log
from positron.text.conversation import Message

GOOD, BAD = "It is two.", "Who cares."
ASK = "What is 1 and 1?"


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def said(who: str, text: str) -> dict[str, str]:
    return {"from": who, "value": text}


TALK = [message("user", ASK), message("assistant", GOOD)]
BAD_TALK = [message("user", ASK), message("assistant", BAD)]
ANSWERS = {"chosen": TALK[1], "rejected": BAD_TALK[1]}
ONE_TURN: dict[str, dict[str, Any]] = {
    "texts": {"prompt": ASK, "chosen": GOOD, "rejected": BAD},
    "capitals": {"Prompt": ASK, "Chosen": GOOD, "Rejected": BAD},
    "messages as prompt": {"prompt": TALK[:1], "chosen": TALK[1:], "rejected": BAD_TALK[1:]},
    "Alpaca": {"instruction": ASK, "input": "", "output": GOOD, "chosen": GOOD, "rejected": BAD},
    "question": {"question": ASK, "chosen": GOOD, "rejected": BAD},
    "ShareGPT": {"conversations": [said("human", ASK)], "chosen": said("gpt", GOOD), "rejected": said("gpt", BAD)},
    "prompt and a list of tags": {"prompt": ASK, "chosen": GOOD, "rejected": BAD, "data": ["one", "two"]},
    "list of one text as prompt": {"data": [ASK], "chosen": GOOD, "rejected": BAD},
    "prompt that is a transcript": {
        "prompt": f"\n\nHuman: {ASK}\n\nAssistant:",
        "chosen": f" {GOOD}",
        "rejected": f" {BAD}",
    },
    "messages with the chosen answer": {"prompt": ASK, "messages": TALK, "chosen": GOOD, "rejected": BAD},
    "messages with the rejected answer": {"messages": BAD_TALK, "chosen": TALK[1:], "rejected": BAD_TALK[1:]},
    "whole conversations": {"chosen": TALK, "rejected": BAD_TALK, "score_chosen": 0.9},
    "whole conversations and prompt": {"prompt": ASK, "chosen": TALK, "rejected": BAD_TALK},
    "transcripts of HH-RLHF": {
        "chosen": f"\n\nHuman: {ASK}\n\nAssistant: {GOOD}",
        "rejected": f"\n\nHuman: {ASK}\n\nAssistant: {BAD}",
    },
}


def written(folder: Path, *rows: Any) -> DataConfig:
    path = folder / "pairs.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return DataConfig("preferences", str(path))


def summary(config: DataConfig, capsys: pytest.CaptureFixture[str]) -> str:
    with screen_log():
        read_pairs(config)
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ONE_TURN)
def test_every_format_gives_the_same_pair(name: str, tmp_path: Path) -> None:
    (pair,) = read_pairs(written(tmp_path, ONE_TURN[name]))
    assert pair.prompt == (Message("user", ASK, learn=False),)
    assert pair.chosen == (Message("assistant", GOOD),)
    assert pair.rejected == (Message("assistant", BAD),)


@pytest.mark.parametrize("name", ["messages as prompt", "whole conversations", "messages and texts"])
def test_lists_of_messages_in_the_cells_of_a_table_give_the_same_pair(name: str, tmp_path: Path) -> None:
    row = {**ONE_TURN, "messages and texts": {"messages": TALK[:1], "chosen": GOOD, "rejected": BAD}}[name]
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        cells = [cell if isinstance(cell, str) else json.dumps(cell) for cell in row.values()]
        csv.writer(file).writerows([row, cells])
    (pair,) = read_pairs(DataConfig("preferences", str(tmp_path / "pairs.csv")))
    assert pair.prompt == (Message("user", ASK, learn=False),)
    assert (pair.chosen, pair.rejected) == ((Message("assistant", GOOD),), (Message("assistant", BAD),))


def test_an_answer_that_is_json_but_holds_no_messages_is_a_text(tmp_path: Path) -> None:
    (pair,) = read_pairs(written(tmp_path, {"prompt": ASK, "chosen": '[{"sum": 2}]', "rejected": '[{"sum": 3}]'}))
    assert pair.chosen == (Message("assistant", '[{"sum": 2}]'),)


def test_of_several_turns_only_those_that_differ_are_learned_from(tmp_path: Path) -> None:
    begin = [message("system", "be kind"), message("user", "hi"), message("assistant", "hello")]
    row = {"chosen": [*begin, *TALK], "rejected": [*begin, *BAD_TALK]}
    (pair,) = read_pairs(written(tmp_path, row))
    assert [m.role for m in pair.prompt] == ["system", "user", "assistant", "user"]
    assert not any(m.learn for m in pair.prompt)
    assert (pair.chosen, pair.rejected) == ((Message("assistant", GOOD),), (Message("assistant", BAD),))


def test_the_material_of_an_instruction_and_a_system_field_are_part_of_the_prompt(tmp_path: Path) -> None:
    row = {"system": "be kind", "instruction": "Add", "input": "1 and 1", "chosen": GOOD, "rejected": BAD}
    (pair,) = read_pairs(written(tmp_path, row))
    assert [(m.role, m.content) for m in pair.prompt] == [("system", "be kind"), ("user", "Add\n\n1 and 1")]


EARLIER = [message("system", "be kind"), message("user", "Hello!"), message("assistant", "Hi.")]


@pytest.mark.parametrize("repeated", [1, 2, 4])
def test_messages_of_the_prompt_that_both_conversations_leave_out_come_first(repeated: int, tmp_path: Path) -> None:
    prompt = [*EARLIER, *TALK[:1]]
    row = {"prompt": prompt, **{side: [*prompt[-repeated:], end] for side, end in ANSWERS.items()}}
    (pair,) = read_pairs(written(tmp_path, row))
    assert [(m.role, m.content) for m in pair.prompt] == [(m["role"], m["content"]) for m in prompt]
    assert (pair.chosen, pair.rejected) == ((Message("assistant", GOOD),), (Message("assistant", BAD),))


@pytest.mark.parametrize("prompt", ["another text", [message("system", "be kind")], [message("tool", "x")], 3])
def test_a_prompt_that_is_not_part_of_the_conversations_is_named_as_not_used(
    prompt: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = written(tmp_path, {"prompt": prompt, "chosen": TALK, "rejected": BAD_TALK})
    assert summary(config, capsys).rstrip().endswith("fields not used: prompt")
    (pair,) = read_pairs(config)
    assert pair.prompt == (Message("user", ASK, learn=False),)


def test_a_prompt_is_compared_without_a_system_field_and_without_the_spaces_around_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"system": "be kind", "chosen": TALK, "rejected": BAD_TALK}
    prompts = [f"{ASK}\n", f"\n\nHuman: {ASK}\n\nAssistant:", TALK[:1]]
    config = written(tmp_path, *[{**row, "prompt": prompt} for prompt in prompts])
    assert "not used" not in summary(config, capsys)
    for pair in read_pairs(config):
        assert [(m.role, m.content) for m in pair.prompt] == [("system", "be kind"), ("user", ASK)]


WRONG = {
    "with identical sides": {"prompt": ASK, "chosen": GOOD, "rejected": GOOD},
    "without a prompt": {"chosen": GOOD, "rejected": BAD, "completion": GOOD, "score": 1},
    "with a prompt that ends with an answer": {
        "messages": [*TALK, message("assistant", "So?")],
        "chosen": GOOD,
        "rejected": BAD,
    },
    "without a question": {"prompt": "Assistant:", "chosen": GOOD, "rejected": BAD},
    "without `rejected`": {"prompt": ASK, "chosen": GOOD},
    "without `chosen`": {"prompt": ASK, "chosen": "", "rejected": BAD},
    "with an empty `rejected`": {"prompt": ASK, "chosen": GOOD, "rejected": "  "},
    "with different prompts": {"chosen": TALK, "rejected": [message("user", "other?"), message("assistant", BAD)]},
    "with a number in `chosen`": {"prompt": ASK, "chosen": 3, "rejected": BAD},
    "with several texts in `chosen`": {"prompt": ASK, "chosen": [GOOD, GOOD], "rejected": BAD},
    "with several texts in `rejected`": {"prompt": ASK, "chosen": GOOD, "rejected": [BAD, BAD]},
    "that are not an object": [1, 2],
    "not JSON": "{broken\n",
}


@pytest.mark.parametrize("label", WRONG)
def test_a_bad_row_is_skipped_counted_and_named_by_its_line(
    label: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [{**ONE_TURN["texts"], "prompt": f"{n}?"} for n in range(3)]
    line = summary(written(tmp_path, good[0], WRONG[label], *good[1:]), capsys)
    assert f"format: 4 pairs, 1 skipped: 1 {label} (line 2)" in line


@pytest.mark.parametrize("label", WRONG)
def test_a_file_of_bad_rows_is_an_error_that_names_the_file_and_the_line(label: str, tmp_path: Path) -> None:
    config = written(tmp_path, WRONG[label])
    with pytest.raises(UserError, match=r"pairs.jsonl, (line|entry) 1 "):
        read_pairs(config)


@pytest.mark.parametrize(
    ("name", "unused"),
    [("Alpaca", "output"), ("whole conversations", "score_chosen"), ("whole conversations and prompt", None)],
)
def test_fields_that_are_not_used_are_named(
    name: str, unused: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = summary(written(tmp_path, ONE_TURN[name]), capsys)
    assert printed.partition("fields not used: ")[2].partition(";")[0].strip() == (unused or "")


def test_pairs_with_the_same_question_are_on_the_same_side_of_the_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n % 20}?", "chosen": f"{n}", "rejected": BAD} for n in range(60)]
    config = written(tmp_path, *rows)
    pairs = read_pairs(DataConfig("preferences", config.path, val_fraction=0.5))
    sides = {pair.prompt: {other.is_val for other in pairs if other.prompt == pair.prompt} for pair in pairs}
    assert {len(side) for side in sides.values()} == {1}
    assert {pair.is_val for pair in pairs} == {True, False}


def test_a_common_first_question_leaves_pairs_for_training_and_validation(tmp_path: Path) -> None:
    rows = [{"prompt": "Hello!" if n % 10 else f"{n}?", "chosen": f"{n}", "rejected": BAD} for n in range(600)]
    config = written(tmp_path, *rows)
    for seed in range(10):
        drawn = dataclasses.replace(config, seed=seed, val_fraction=0.1)
        assert 12 <= sum(pair.is_val for pair in read_pairs(drawn)) <= 300  # a fifth and five times a tenth
        kept = read_pairs(drawn, lambda former: len(former) == 600)
        assert len({pair.is_val for pair in kept if pair.prompt[0].content == "Hello!"}) == 1


def test_a_rejected_story_violates_exactly_one_point_of_the_request() -> None:
    fields = {"name": "name", "thing": "object", "place": "place", "plot": "plot"}
    seen = set()
    for index, pair in enumerate(story_pairs(3, 0, 60, 0.1)):
        request = stories.requests(3, index)
        told, kind = violated(request, 3, index)
        different = [name for name, field in fields.items() if getattr(request, field) != getattr(told, field)]
        assert different == [kind]
        assert stories.follows(pair.chosen[0].content, request)
        assert stories.follows(pair.rejected[0].content, told)
        assert not stories.follows(pair.rejected[0].content, request)
        assert len(stories.parse(pair.rejected[0].content)) == 1  # a valid story, which contradicts itself nowhere
        seen.add(kind)
    assert seen == set(fields)


def test_validation_requests_no_combination_that_training_requests() -> None:
    sides: dict[bool, set[tuple[str, str, str]]] = {True: set(), False: set()}
    for index, pair in enumerate(story_pairs(0, 0, 3000, 0.1)):
        request = stories.requests(0, index)
        sides[pair.is_val].add((request.name, request.object, request.place))
    assert 200 < len(sides[True]) < 400
    assert not sides[True] & sides[False]


def test_story_pairs_depend_on_the_seed_and_the_index_alone() -> None:
    whole = list(story_pairs(5, 0, 6, 0.1))
    assert whole[4:] == list(story_pairs(5, 4, 6, 0.1))
    assert whole != list(story_pairs(6, 0, 6, 0.1))
