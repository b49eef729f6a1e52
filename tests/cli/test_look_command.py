"""`positron look`: a table for people, JSON for programs."""

import json
import shutil

import pytest
from conftest import tiny

from positron.run.folder import Run
from positron.text.conversation import TEMPLATE
from positron.train import train


def test_the_look_command_and_its_mistakes(tmp_path, run_command):
    folder = tmp_path / "outputs" / "tiny"
    folder.parent.mkdir()
    train(tiny(tmp_path, train__max_steps=6, train__keep_history=2, model__context_length=80), folder)

    shown = run_command("look", "tiny", "Once upon a?\x1b[2J")
    assert shown.code == 0, shown.err
    lines = shown.out.splitlines()
    assert lines[0].startswith("outputs/tiny, step 6: ")
    assert "exact  regret" in lines[2]
    assert [line.split()[0] for line in lines[3:7]] == ["O", "n", "c", "e"]
    assert "\x1b" not in shown.out
    assert 'from character 11 on: no story continues with "?" here; possible words: "time,"' in shown.out

    found = json.loads(run_command("look", "tiny", "-", "--json", "--step", "0", stdin="Once\n").out)
    assert found["look"]["step"] == 0
    assert found["look"]["prompt"] == "Once"
    assert len(found["look"]["attention"][1][3]) == len(found["truth"]["tokens"]) == 5

    history = run_command("look", "tiny", "--history")
    rows = [line.split() for line in history.out.partition("\n   step ")[2].splitlines()[1:3]]
    assert [row[0] for row in rows] == ["0", "6"]
    assert float(rows[0][2]) > float(rows[1][2]) > 0
    for row in rows:
        assert sum(map(float, row[3:])) == pytest.approx(float(row[2]), abs=0.05)

    heads = run_command("look", str(folder), "--heads", "--ablate", "0.1", "--ablate", "1.mlp")
    assert "without 0.1, 1.mlp: " in heads.out
    assert "exact" not in heads.out
    assert heads.code == 0, heads.err
    rows = [line.split()[0] for line in heads.out.partition("\npart ")[2].splitlines()[1:7]]
    assert rows == ["0.0", "0.1", "0.2", "0.3", "0.attn", "0.mlp"]

    talker = tmp_path / "outputs" / "talker"
    shutil.copytree(folder, talker)
    Run(talker).chat_path.write_text(json.dumps(TEMPLATE))
    answered = run_command("look", "talker", "Hi", "--history")
    assert answered.code == 0, answered.err
    assert [line.split()[0] for line in answered.out.splitlines()[3:8]] == [
        "<|user|>",
        "H",
        "i",
        "<|end|>",
        "<|assistant|>",
    ]
    assert "\nanswer: " in answered.out

    page = run_command("look", "tiny", "Once", "--html", "page.html")
    assert page.code == 0, page.err
    text = (tmp_path / "page.html").read_text()
    assert "<title>Look inside tiny</title>" in text
    assert f"{len(text.encode()):,} bytes; weights rounded to 16 bits" in page.err

    (Run(folder).facts_path).write_text("{}")
    for arguments, message in (
        (("tiny", "--step", "3"), "not of step 3: choose one of them"),
        (("tiny", "--html", "x.html", "--json"), "give only one of them"),
        (("tiny", "--html", "x.html", "--step", "3"), "with the best checkpoint, not with that of a given step"),
        (("tiny", "--html", "x.html", "--ablate", "0.attention"), "leave --ablate out"),
        (("tiny", "--ablate", "x"), "'x' does not name a part of the model"),
        (("tiny", "a" * 80), "the prompt has 80 tokens and may have at most 79"),
        (("nowhere",), "no run nowhere"),
    ):
        refused = run_command("look", *arguments)
        assert refused.code == 2
        assert message in refused.err
