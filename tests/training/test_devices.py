"""Two processes train what one trains, and runs move between them."""

import pytest
from conftest import FAST
from traces import trace
from two_processes import TWO, run


@pytest.mark.slow
def test_two_processes_have_the_trace_of_one_also_when_the_number_changes_midway(door, tmp_path):
    common = ("train.max_steps=12", "train.val_every=6", "train.micro_batch_size=3", "train.save_every=6")

    def alone(*arguments):
        result = door("train", "model=debug", *FAST, "train.log_every=1", *arguments, "device=cpu", *common)
        assert result.code == 0, result.err

    alone("name=one")
    run(tmp_path, "name=two", *TWO, "train.stop_at=6", *common)
    alone("name=two")
    alone("name=back", "train.stop_at=6")
    run(tmp_path, "name=back", *TWO, *common)
    one, *others = (trace(tmp_path / "outputs" / name) for name in ("one", "two", "back"))
    for other in others:
        assert [row[:2] for row in other] == [row[:2] for row in one]
        for mine, theirs in zip(other, one, strict=True):
            for a, b in zip(mine[2:], theirs[2:], strict=True):
                assert (a is None) == (b is None)
                assert a is None or a == pytest.approx(b, rel=2e-4), (mine, theirs)


def test_a_batch_that_cannot_be_shared_is_refused_with_one_that_can(door):
    result = door("train", "model=debug", *FAST, *TWO, "train.batch_tokens=96")
    assert result.code == 2
    assert "train.batch_tokens=128" in result.err
