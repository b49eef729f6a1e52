"""run.json: typed for us, as it was for other versions, never trusted."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from positron.run.facts import Facts, Resolved, read_record
from positron.run.folder import Run
from positron.system.errors import UserError, without_advice

RESOLVED = Resolved(batch_tokens=512, micro_batch_size=4, max_steps=40, accelerator="cpu", precision="fp32", threads=2)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def write(run: Run, **record: Any) -> None:
    run.facts_path.write_text(json.dumps(record))


def test_what_is_written_is_read_under_the_same_names(run: Run) -> None:
    changes = {"status": "stopped", "step": 8, "time_s": 0.5, "val_bpb": 1.25, "best_step": 4, "resolved": RESOLVED}
    run.update(**changes)
    facts = run.facts()
    assert {name: getattr(facts, name) for name in changes} == changes
    assert facts.tokens is None
    assert run.resolved() == RESOLVED


def test_the_keys_on_the_disk_are_those_of_older_versions(run: Run) -> None:
    run.update(val_bpb=1.0, val_loss=2.0, best_bpb=0.5, best_step=3, base_tokens=7, base_bpb_before=1.5, floor_bpb=0.25)
    record, is_whole = read_record(run.facts_path)
    assert is_whole
    assert record.pop("updated")
    assert record == {
        "val/bpb": 1.0,
        "val/loss": 2.0,
        "best/bpb": 0.5,
        "best/step": 3,
        "base/tokens": 7,
        "base/bpb_before": 1.5,
        "floor_bpb": 0.25,
    }


def test_keys_of_other_versions_survive_an_update(run: Run) -> None:
    write(run, status="running", step=3, rewards={"mean": 0.5}, **{"val/accuracy": 0.75})
    run.update(status="finished")
    record, _ = read_record(run.facts_path)
    assert (record["rewards"], record["val/accuracy"]) == ({"mean": 0.5}, 0.75)
    assert (record["status"], record["step"]) == ("finished", 3)


def test_an_update_changes_only_what_it_names_and_none_is_a_value(run: Run) -> None:
    run.update(status="failed", error="out of memory", step=3)
    run.update(error=None)
    assert dataclasses.replace(run.facts(), updated=None) == Facts(status="failed", step=3)
    assert read_record(run.facts_path)[0]["error"] is None


def test_a_name_that_is_not_a_fact_is_an_error_of_the_caller_and_writes_nothing(run: Run) -> None:
    for name in ("val/bpb", "bpb", "statuses"):
        with pytest.raises(TypeError):
            run.update(**{"step": 3, name: 1.0})
    assert not run.facts_path.exists()


def test_a_folder_without_facts_knows_nothing(run: Run) -> None:
    assert run.facts() == Facts()


WRONG: dict[str, list[Any]] = {
    "status": [3, ["finished"], {}],
    "step": [-1, 1.5, "8", None, True, 10**30],
    "tokens": [-1, False, "many"],
    "best/step": [None, 0.5],
    "base/tokens": [-5, "all"],
    "time_s": ["long", True, [1.0]],
    "val/bpb": ["low", {}, 10**400],
    "floor_bpb": [[0.2], "0.2"],
    "data_fingerprint": [7, []],
    "resolved": [7, None, [], "auto"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_a_value_of_another_type_is_named_and_never_overwritten(run: Run, key: str, value: Any) -> None:
    write(run, **{"name": "x", key: value})
    before = run.facts_path.read_bytes()
    for read in (run.facts, lambda: run.update(error="what happened later")):
        with pytest.raises(UserError, match=rf"run\.json is damaged or was edited: {key} is ") as error:
            read()
        assert len(str(error.value)) < 400
    assert run.facts_path.read_bytes() == before


@pytest.mark.parametrize(
    ("resolved", "why"),
    [
        ({"batch_tokens": "auto"}, r"resolved\.batch_tokens is \"auto\""),
        ({"threads": -2}, r"resolved\.threads is -2 instead of a whole number from 0"),
        ({"precision": 16}, r"resolved\.precision is 16"),
    ],
)
def test_a_wrong_value_in_what_auto_became_is_named(run: Run, resolved: dict[str, Any], why: str) -> None:
    write(run, resolved={**dataclasses.asdict(RESOLVED), **resolved})
    with pytest.raises(UserError, match=why):
        run.facts()


@pytest.mark.parametrize("key", ["batch_tokens", "micro_batch_size", "max_steps"])
def test_a_run_that_lost_what_auto_became_can_be_read_and_not_continued(run: Run, key: str) -> None:
    write(run, status="stopped", resolved={k: v for k, v in dataclasses.asdict(RESOLVED).items() if k != key})
    assert run.facts() == Facts(status="stopped")
    with pytest.raises(UserError, match="batch_tokens, micro_batch_size and max_steps"):
        run.resolved()


def test_what_an_older_version_did_not_resolve_is_none(run: Run) -> None:
    write(run, resolved={"batch_tokens": 512, "micro_batch_size": 4, "max_steps": 40, "of_tomorrow": True})
    assert run.resolved() == dataclasses.replace(RESOLVED, accelerator=None, precision=None, threads=None)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("model.n_head is missing: give model.n_head=VALUE", "model.n_head is missing"),
        ("unknown key train.foo: did you mean train.stop_at?", "unknown key train.foo"),
        ("unknown key foo: positron train --cfg job lists all keys", "unknown key foo"),
        ("model.n_layer=0 must be at least 1", "model.n_layer=0 must be at least 1"),
    ],
)
def test_a_damaged_setting_is_named_without_the_advice_to_give_another(message: str, said: str) -> None:
    assert without_advice(UserError(message)) == said
