"""`positron export`: a new folder that is complete or absent, and one line for what cannot be exported."""

import errno
import json
import os
import stat
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from faults import full_disk
from safetensors import safe_open
from saved_runs import SHAPES, char, gpt_config, random_model, save_run, sentencepiece

import positron
from positron.interop import llama2c, ollama
from positron.interop.formats import export
from positron.interop.source import open_source
from positron.system.errors import UserError


def source(folder, shape, tokenizer, **more):
    return open_source(
        save_run(folder / "run", random_model(gpt_config(tokenizer.vocab_size, **shape)), tokenizer, **more)
    )


def test_the_command_writes_into_the_run_and_tells_what_it_wrote(tmp_path, run_command):
    save_run(tmp_path / "outputs" / "small", random_model(gpt_config(char().vocab_size)), char())
    result = run_command("export", "small", "--to", "safetensors")
    assert result.code == 0, result.err
    assert (tmp_path / "outputs" / "small" / "export" / "safetensors" / "model.safetensors").exists()
    assert "it computes exactly the same logits as best.ckpt" in result.err
    again = run_command("export", "small", "--to", "safetensors")
    assert again.code == 2
    assert "exists already" in again.err


def test_python_exports_as_the_command_does(tmp_path):
    run = save_run(tmp_path / "run", random_model(gpt_config(char().vocab_size)), char())
    folder = positron.export(run, "safetensors", tmp_path / "out")
    with safe_open(folder / "model.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["gpt_config"])["d_model"] == 32


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    run = source(tmp_path, {}, char())
    with pytest.raises(UserError, match="exists already and is not empty: give the path of a new folder"):
        export(run, "hf", tmp_path / "out")
    with pytest.raises(UserError, match=r"mine\.txt, because it exists already: give the path of a new folder$"):
        export(run, "hf", tmp_path / "out" / "mine.txt")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_the_export_of_an_unfinished_run_is_called_unfinished(tmp_path, logged):
    run = save_run(tmp_path / "run", random_model(gpt_config(char().vocab_size)), char())
    run.update(status="stopped", step=20)
    positron.export(run, "safetensors", tmp_path / "out")
    assert any("run is not finished (stopped, " in line for line in logged), logged


def test_an_export_may_fill_an_empty_folder(tmp_path):
    (tmp_path / "out").mkdir()
    export(source(tmp_path, {}, char()), "safetensors", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("to", ["hf", "gguf", "ollama", "llama2c"])
def test_a_refused_export_leaves_nothing_behind(to, tmp_path):
    with pytest.raises(UserError, match=r"model\.smear=true"):
        export(source(tmp_path, {**SHAPES["llama"], "smear": True}, sentencepiece()), to, tmp_path / "out" / to)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else False, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot write"):
        export(source(tmp_path, {}, char()), "hf", tmp_path / "closed" / "out")


def test_a_run_folder_that_cannot_be_written_is_named_with_the_option_for_another_folder(tmp_path, monkeypatch):
    run = source(tmp_path, {}, char())

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot create the folder \S+ \(Permission denied\): give --out FOLDER$"):
        export(run, "safetensors", tmp_path / "export" / "safetensors")


@pytest.mark.parametrize("to", ["safetensors", "hf", "gguf", "llama2c"])
def test_a_full_disk_is_one_line_in_every_format(to, tmp_path):
    full = pytest.importorskip("resource", reason="Windows has no limit for the size of a file")
    run, old = source(tmp_path, SHAPES["llama"], sentencepiece()), full.getrlimit(full.RLIMIT_FSIZE)
    try:
        full_disk(60_000)
        with pytest.raises(UserError, match=r"cannot write .*: (File too large|\d+ requested .* the disk may be full)"):
            export(run, to, tmp_path / "out")
    finally:
        full.setrlimit(full.RLIMIT_FSIZE, old)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize("to", ["safetensors", "hf"])
def test_the_umask_decides_who_may_read_the_weights(to, tmp_path):
    run, before = source(tmp_path, SHAPES["llama"], sentencepiece()), os.umask(0o002)
    try:
        export(run, to, tmp_path / "out")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o664}


def test_rounding_is_refused_where_the_format_has_none(tmp_path):
    with pytest.raises(UserError, match=r"--to hf has only f32: leave --precision out, or give --to gguf or ollama$"):
        export(source(tmp_path, {}, char()), "hf", tmp_path / "out", "q8_0")


@pytest.mark.parametrize("shape", [{}, {"n_kv_head": 2, "tie_embeddings": False}])
def test_llama2c_reads_back_what_was_written(shape, tmp_path):
    tokenizer = sentencepiece()
    made = source(tmp_path, {**SHAPES["llama"], **shape}, tokenizer)
    assert export(made, "llama2c", tmp_path / "out") == 0
    content = (tmp_path / "out" / "model.bin").read_bytes()
    width, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack("<7i", content[:28])
    assert (width, layers, heads, context) == (32, 2, 4, 16)
    assert (hidden, kv_heads) == (made.config.ff_width, made.config.kv_heads)
    assert vocabulary == tokenizer.vocab_size * (-1 if shape else 1)  # negative: the head is a matrix of its own
    tables = context * (width // heads)
    untied = tokenizer.vocab_size * width if shape else 0
    norms = (2 * layers + 1) * width
    matrices = made.config.matmul_params() - tokenizer.vocab_size * width
    numbers = tokenizer.vocab_size * width + matrices + norms + tables + untied
    assert len(content) == 28 + 4 * numbers


def test_llama2c_has_the_ids_that_run_c_fixes(tmp_path):
    tokenizer = sentencepiece()
    export(source(tmp_path, SHAPES["llama"], tokenizer), "llama2c", tmp_path / "out")
    content = (tmp_path / "out" / "tokenizer.bin").read_bytes()
    longest, place, texts = struct.unpack_from("<i", content)[0], 4, []
    while place < len(content):
        _, length = struct.unpack_from("<fi", content, place)
        texts.append(content[place + 8 : place + 8 + length])
        place += 8 + length
    assert len(texts) == tokenizer.vocab_size
    assert longest == max(map(len, texts))
    assert texts[1] == b"<|endoftext|>"
    assert texts[3:259] == [f"<0x{b:02X}>".encode() for b in range(256)]
    rows = np.frombuffer((tmp_path / "out" / "model.bin").read_bytes(), dtype="<f4", offset=28)[: len(texts) * 32]
    begin = tokenizer.special_id("<|endoftext|>")
    model = random_model(gpt_config(tokenizer.vocab_size, **SHAPES["llama"]))
    assert np.array_equal(rows.reshape(-1, 32)[1], model.wte.weight[begin].numpy())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            {**SHAPES["llama"], "bias": True},
            r"does not support model\.bias=true, only bias=false: train a run with model=quickstart_portable tokenizer=spm_2k$",
        ),
        (
            SHAPES["arcee"],
            r"does not support model\.activation=relu2, only activation=swiglu: .* model=quickstart_portable tokenizer=spm_2k$",
        ),
        ({}, r"model\.norm=layernorm"),
        ({**SHAPES["llama"], "window": 3}, r"model\.window=3"),
    ],
)
def test_llama2c_names_the_option_that_it_lacks(shape, message):
    with pytest.raises(UserError, match=message):
        llama2c.check_model(gpt_config(600, **shape))


def test_llama2c_refuses_other_vocabularies():
    with pytest.raises(UserError, match=r"tokenizer\.kind=char"):
        llama2c.check_tokenizer(char())


def test_a_modelfile_spells_the_template_of_a_chat(tmp_path):
    pytest.importorskip("gguf")
    export(source(tmp_path, SHAPES["llama"], sentencepiece(), chat=True), "ollama", tmp_path / "out")
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n")
    assert "<|{{ .Role }}|>{{ .Content }}<|end|>" in text
    assert 'PARAMETER stop "<|end|>"' in text
    assert "PARAMETER num_ctx 16" in text


def test_a_modelfile_of_a_base_model_continues_the_prompt(tmp_path):
    made = source(tmp_path, SHAPES["llama"], sentencepiece())
    assert 'TEMPLATE """{{ .Prompt }}"""' in ollama.modelfile(made)
    assert "stop" not in ollama.modelfile(made)


def test_every_format_is_listed_in_the_help_and_in_the_type():
    from typing import get_args

    from positron.export import FORMATS, arguments
    from positron.interop.formats import Format, Precision

    assert list(FORMATS) == list(get_args(Format))
    for precision in get_args(Precision):
        assert arguments().parse_args(["--to", "gguf", "--precision", precision]).precision == precision


def test_a_run_that_does_not_exist_is_one_line(run_command):
    result = run_command("export", "nowhere", "--to", "hf")
    assert result.code == 2
    assert len(result.err.strip().splitlines()) <= 2
    assert "no run nowhere" in result.err
    assert not Path("nowhere").exists()
