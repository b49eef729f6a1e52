"""Models of other projects become runs: the same logits and tokens, and one line for each file that cannot be read."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saved_runs import SHAPES, char, corpus, gpt_config, greedy, odd_lines, random_model, save_run, sentencepiece

import positron
from positron.interop import hf_folder, hf_reading, importing, llama2c
from positron.interop.formats import export
from positron.interop.importing import import_run, read_model, write_run
from positron.interop.names import needs_import
from positron.interop.source import open_source
from positron.interop.tokenizer_json import tokenizer_json
from positron.model.gpt import GPT
from positron.run.differences import refuse_differences
from positron.run.facts import read_record, write_record
from positron.run.find import find_run
from positron.run.folder import Run
from positron.run.load import load_model
from positron.system.errors import UserError
from positron.text.conversation import MARKERS
from positron.text.library_json import LibraryTokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS

transformers = pytest.importorskip("transformers")
V = 400
SIZES = {
    "vocab_size": V,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}),
    "smollm2": ("Llama", {**SIZES, "max_position_embeddings": 256, "rope_theta": 1e5, "tie_word_embeddings": True}),
    "tinyllama": ("Llama", {**SIZES, "rms_norm_eps": 1e-5}),
    "llama_attention_bias": ("Llama", {**SIZES, "attention_bias": True}),
    "qwen2": ("Qwen2", {**SIZES, "rope_theta": 1e6, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {**SIZES, "head_dim": 16, "rope_theta": 1e6, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {**SIZES, "sliding_window": 8}),
    "arcee": ("Arcee", SIZES),
    "apertus": (
        "Apertus",
        {**SIZES, "hidden_act": "relu2", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "starcoder2": ("Starcoder2", {**SIZES, "sliding_window": 8, "hidden_act": "gelu_pytorch_tanh"}),
}


def byte_level_json() -> str:
    """A vocabulary in the manner of GPT-2, trained here."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=V, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    library.train_from_iterator(corpus(), trainer)
    return library.to_str()


def hub_folder(folder: Path, name: str) -> tuple[Path, Any]:
    """A folder as transformers writes it, with random weights, and the model itself."""
    kind, options = MODELS[name]
    torch.manual_seed(0)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    model = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(byte_level_json())
    return folder, model


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_transformers_computes_the_same_logits_here(name, tmp_path):
    folder, theirs = hub_folder(tmp_path / name, name)
    read = read_model(folder)
    ours = GPT(read.config).eval()
    ours.load_state_dict(read.weights)
    ids = torch.randint(V, (3, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (ours(ids)[..., :V] - theirs(ids).logits).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_key_missing_in_config_json_has_the_default_of_transformers_or_is_refused(name, tmp_path):
    folder, _ = hub_folder(tmp_path / name, name)
    path, ids = folder / "config.json", torch.randint(V, (1, 32), generator=torch.Generator().manual_seed(1))
    described = json.loads(path.read_text())
    for missing in described.keys() - {"architectures", "model_type", "dtype", "transformers_version"}:
        path.write_text(json.dumps({key: value for key, value in described.items() if key != missing}))
        try:
            read = read_model(folder)
        except UserError:
            continue
        ours, theirs = GPT(read.config).eval(), transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        ours.load_state_dict(read.weights)
        with torch.no_grad():
            assert (ours(ids)[..., :V] - theirs(ids).logits).abs().max() < 1e-5, missing


def test_mistral_has_a_window_of_4096_unless_config_json_says_otherwise(tmp_path):
    folder, _ = hub_folder(tmp_path / "mistral", "mistral")
    path = folder / "config.json"
    described = json.loads(path.read_text())
    for window in (8, None):
        path.write_text(json.dumps({**described, "sliding_window": window}))
        assert read_model(folder).config.window == window
    del described["sliding_window"]
    path.write_text(json.dumps(described))
    assert read_model(folder).config.window == transformers.MistralConfig().sliding_window == 4096


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mistral", {"use_sliding_window": False}),
        ("mistral", {"use_sliding_window": False, "layer_types": ["full_attention"] * 2}),
        ("starcoder2", {"use_sliding_window": False}),
        ("starcoder2", {"layer_types": ["full_attention"] * 2}),
        *(
            (
                "qwen3",
                {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": first, "layer_types": kinds},
            )
            for first, kinds in [(0, None), (2, None), (28, None), (2, ["full_attention"] * 2)]
        ),
    ],
)
def test_a_sliding_window_is_read_as_transformers_reads_it(name, settings, tmp_path):
    folder, _ = hub_folder(tmp_path / "model", name)
    for key, value in settings.items():
        changed(key, value)(folder)
    read, theirs = read_model(folder), transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ours, ids = GPT(read.config).eval(), torch.arange(30)[None]
    ours.load_state_dict(read.weights)
    with torch.no_grad():
        assert (ours(ids)[..., :V] - theirs(ids).logits).abs().max() < 1e-5


def test_an_imported_run_writes_what_transformers_writes(tmp_path):
    folder, theirs = hub_folder(tmp_path / "smollm2", "smollm2")
    model, tokenizer, _ = load_model(write_run(read_model(folder), tmp_path / "run"))
    prompt = [tokenizer.special_id(END_OF_TEXT), *tokenizer.encode("Once upon")]
    wanted = theirs.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None)
    assert greedy(model, prompt, 20) == wanted[0, len(prompt) :].tolist()


def test_new_markers_get_rows_near_the_mean_of_the_others(tmp_path):
    read = read_model(hub_folder(tmp_path / "gpt2", "gpt2")[0])
    table = read.weights["wte.weight"]
    assert [read.tokenizer.special_id(token) for token in SPECIALS] == [0, V, V + 1, V + 2, V + 3]
    assert len(table) == read.config.vocab_size == V + 4
    assert (table[V:] - table[:V].mean(dim=0)).abs().max() < table[:V].std() / 10


def test_no_text_spells_a_special_token_of_an_imported_vocabulary(tmp_path):
    tokenizer = read_model(hub_folder(tmp_path / "gpt2", "gpt2")[0]).tokenizer
    for line in ["<|endoftext|>", "a<|end|>b", *odd_lines(200)]:
        ids = tokenizer.encode(line)
        assert not set(ids) & {tokenizer.special_id(token) for token in SPECIALS}
        assert tokenizer.decode(ids) == line
        assert tokenizer.token_bytes()[ids].sum() == len(line.encode("utf-8"))


@pytest.mark.slow
def test_an_imported_run_is_trained_continued_tuned_and_exported(tmp_path, run_command):
    hub_folder(tmp_path / "model", "smollm2")
    (tmp_path / "my.txt").write_text("\n\n".join(corpus()), encoding="utf-8")
    talk = '{"messages": [{"role": "user", "content": "Hi %d"}, {"role": "assistant", "content": "Yes."}]}\n'
    (tmp_path / "talk.jsonl").write_text("".join(talk % i for i in range(40)))
    assert run_command("import_", "model", "--name", "base").code == 0
    common = ("device=cpu", "schedule.warmup_steps=1", "train.batch_tokens=512")
    train = ("train", "init_from=base", "data=text", "data.path=my.txt", "name=more", *common, "train.max_steps=4")
    first = run_command(*train, "train.stop_at=2")
    assert first.code == 0, first.err
    again = run_command(*train)
    assert again.code == 0, again.err
    assert "resuming" in again.err
    tuned = run_command(
        "sft", "init_from=base", "data=instruct", "data.path=talk.jsonl", "name=chat", *common, "train.max_steps=2"
    )
    assert tuned.code == 0, tuned.err
    for run in ("base", "more", "chat"):
        written = run_command("export", run, "--to", "hf", "--out", f"out-{run}")
        assert written.code == 0, written.err
    assert run_command("evaluate", "--run", "more", "--limit", "2000").code == 0
    text = run_command("evaluate", "--run", "base")
    assert text.code == 2
    assert "outputs/base was imported, so the text that it was trained on is unknown" in text.err


@pytest.mark.parametrize("name", [n for n in SHAPES if n != "stablelm"])
def test_an_export_comes_back_to_the_last_bit(name, tmp_path):
    tokenizer = sentencepiece()
    model = random_model(gpt_config(tokenizer.vocab_size, **SHAPES[name]))
    export(open_source(save_run(tmp_path / "run", model, tokenizer)), "hf", tmp_path / "hf")
    read = read_model(tmp_path / "hf")
    assert read.config == model.config
    weights = dict(model.named_parameters())
    assert read.weights.keys() == weights.keys()
    assert all(torch.equal(read.weights[key], weights[key]) for key in weights)
    assert [read.tokenizer.special_id(token) for token in SPECIALS] == [tokenizer.special_id(t) for t in SPECIALS]
    assert all(read.tokenizer.encode(text) == tokenizer.encode(text) for text in corpus()[:50])


@pytest.mark.parametrize("is_masked", [False, True])
def test_an_export_comes_back_with_the_document_mask_of_its_pretraining(is_masked, tmp_path):
    model = random_model(gpt_config(char().vocab_size, **SHAPES["llama"]))
    run = save_run(tmp_path / "run", model, char())
    write_record(run.config_path, {**run.config(), "data": {**run.config()["data"], "document_mask": is_masked}})
    export(open_source(run), "hf", tmp_path / "hf")
    read = read_model(tmp_path / "hf")
    assert read.config == model.config
    assert write_run(read, tmp_path / "again").settings().data.document_mask == is_masked
    noted = json.loads((tmp_path / "hf" / "config.json").read_text())["positron"]
    assert is_masked or noted == dataclasses.asdict(model.config)  # as in exports of older versions


def test_an_export_that_was_trained_elsewhere_is_read_by_its_own_config(tmp_path, monkeypatch):
    """Groups of GPT-2's keys are written repeated; once they differ, they are a head each."""
    from safetensors.torch import load_file, save_file

    model = random_model(gpt_config(char().vocab_size, **SHAPES["gpt2_without_biases"]))
    export(open_source(save_run(tmp_path / "run", model, char())), "hf", tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors["transformer.h.0.attn.c_attn.weight"] += 0.01 * torch.randn(32, 96)
    save_file(tensors, tmp_path / "hf" / "model.safetensors")
    opened = []
    read_file = hf_folder._safetensors
    monkeypatch.setattr(hf_folder, "_safetensors", lambda path: opened.append(path) or read_file(path))
    read = read_model(tmp_path / "hf")
    assert len(opened) == 1  # the weights, which may be gigabytes, are read once
    assert read.config.kv_heads == 4
    ours = GPT(read.config).eval()
    ours.load_state_dict(read.weights)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        assert (ours(torch.arange(16)[None]) - theirs(torch.arange(16)[None]).logits).abs().max() < 1e-5


def test_an_export_with_a_tensor_of_another_shape_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    model = random_model(gpt_config(char().vocab_size, **SHAPES["llama"]))
    export(open_source(save_run(tmp_path / "run", model, char())), "hf", tmp_path / "hf")
    read, name = load_file(tmp_path / "hf" / "model.safetensors"), "model.layers.0.mlp.up_proj.weight"
    save_file({**read, name: read[name][:-3].contiguous()}, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(UserError, match=f"the tensor {name} has the shape"):
        read_model(tmp_path / "hf")


@pytest.mark.parametrize("note", [{"smear": True}, {"d_model": "wide"}, {"n_head": 5}, ["d_model", 32]])
def test_a_note_of_an_export_that_is_not_valid_is_ignored(note, tmp_path):
    """No class of transformers has smear; the other notes describe no model."""
    model = random_model(gpt_config(char().vocab_size, **SHAPES["llama"]))
    export(open_source(save_run(tmp_path / "run", model, char())), "hf", tmp_path / "hf")
    described = json.loads((tmp_path / "hf" / "config.json").read_text())
    noted = {**described["positron"], **note} if isinstance(note, dict) else note
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**described, "positron": noted}))
    read = read_model(tmp_path / "hf")
    ours, ids = GPT(read.config).eval(), torch.arange(16)[None]
    ours.load_state_dict(read.weights)
    torch.testing.assert_close(ours(ids), model.eval()(ids))


def test_a_chat_model_of_ours_stays_one(tmp_path):
    tokenizer = sentencepiece()
    model = random_model(gpt_config(tokenizer.vocab_size, **SHAPES["llama"]))
    export(open_source(save_run(tmp_path / "run", model, tokenizer, chat=True)), "hf", tmp_path / "hf")
    assert write_run(read_model(tmp_path / "hf"), tmp_path / "again").is_chat


def test_shards_and_a_pickle_of_tensors_are_read_alike(tmp_path):
    folder, theirs = hub_folder(tmp_path / "whole", "tinyllama")
    whole = read_model(folder).weights
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    shutil.copy(folder / "tokenizer.json", tmp_path / "shards")
    shutil.copytree(folder, tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pickle" / "pytorch_model.bin")
    for other in ("shards", "pickle"):
        read = read_model(tmp_path / other).weights
        assert all(torch.equal(read[name], whole[name]) for name in whole)


def test_model_safetensors_is_read_instead_of_an_index_beside_it(tmp_path):
    """transformers chooses so; an old index may be left, and mlx-lm writes one for the single file, too."""
    folder, theirs = hub_folder(tmp_path / "model", "tinyllama")
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.weight": "old.safetensors"}}')
    assert torch.equal(read_model(folder).weights["lm_head.weight"][:V], theirs.lm_head.weight)


@pytest.mark.parametrize("name", ["smollm2", "gpt2"])
def test_an_output_head_with_other_values_than_the_embedding_is_kept_though_config_json_ties_them(
    name, tmp_path, logged
):
    from safetensors.torch import load_file, save_file

    folder, theirs = hub_folder(tmp_path / "model", name)
    read = load_file(folder / "model.safetensors")
    for head in (theirs.lm_head.weight.detach().clone(), torch.randn(V, 32)):
        save_file({**read, "lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
        is_other = not torch.equal(head, theirs.lm_head.weight)
        imported = read_model(folder)
        assert imported.config.tie_embeddings != is_other
        assert logged == is_other * [
            f"config.json ties the output head to the embedding, but the head in {folder} has other values: using the head, "
            "as transformers does"
        ]
        theirs.lm_head.weight = torch.nn.Parameter(head)
        ours, ids = GPT(imported.config).eval(), torch.arange(30)[None]
        ours.load_state_dict(imported.weights)
        with torch.no_grad():
            assert (ours(ids)[..., :V] - theirs(ids).logits).abs().max() < 1e-5


def llama2c_files(folder: Path, *, untied: bool = False) -> tuple[Path, Any]:
    tokenizer = sentencepiece()
    shape = {**SHAPES["llama"], "n_kv_head": 2, "tie_embeddings": not untied}
    model = random_model(gpt_config(tokenizer.vocab_size, **shape))
    export(open_source(save_run(folder / "run", model, tokenizer)), "llama2c", folder / "out")
    return folder / "out" / "model.bin", model


@pytest.mark.parametrize("untied", [False, True])
def test_a_file_of_llama2c_computes_the_same_logits(untied, tmp_path):
    path, model = llama2c_files(tmp_path, untied=untied)
    read = read_model(path)
    ours = GPT(read.config).eval()
    ours.load_state_dict(read.weights)
    order = torch.tensor(llama2c.id_order(sentencepiece()))
    ids = torch.randint(len(order), (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (ours(ids)[..., : len(order)] - model(order[ids])[..., order]).abs().max() < 1e-5


def test_a_file_of_llama2c_with_a_number_that_is_infinite_is_refused(tmp_path):
    path, _ = llama2c_files(tmp_path)
    content = bytearray(path.read_bytes())
    content[400:404] = np.array(np.inf, dtype="<f4").tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"its tensor .* contains NaN or infinite values"):
        read_model(path)


def test_a_vocabulary_of_llama2c_encodes_as_sentencepiece_does_after_a_space(tmp_path):
    path, _ = llama2c_files(tmp_path)
    read = read_model(path).tokenizer
    order = llama2c.id_order(sentencepiece())
    for text in corpus()[:50]:
        assert [order[i] for i in read.encode(text)] == sentencepiece().encode(" " + text)


def test_an_export_to_llama2c_comes_back_with_the_markers_that_its_vocabulary_has(tmp_path):
    path, model = llama2c_files(tmp_path)
    read = read_model(path)
    assert read.config.vocab_size == model.config.vocab_size
    ids = [read.tokenizer.special_id(token) for token in MARKERS]
    order = llama2c.id_order(sentencepiece())
    assert [order[i] for i in ids] == [sentencepiece().special_id(token) for token in MARKERS]
    assert not set(ids) & set(read.tokenizer.encode("".join(MARKERS)))
    run = write_run(dataclasses.replace(read, is_chat=True), tmp_path / "again")
    export(open_source(run), "hf", tmp_path / "hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs.convert_tokens_to_ids(list(MARKERS)) == ids


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_vocabulary_that_has_a_marker_twice_is_not_exported(to, tmp_path):
    read = read_model(llama2c_files(tmp_path)[0])
    rows = read.config.vocab_size
    specials = {END_OF_TEXT: 1, **{token: rows + i for i, token in enumerate(SPECIALS[1:])}}
    old = LibraryTokenizer(read.tokenizer.content, specials, rows + len(SPECIALS) - 1)
    model = random_model(gpt_config(old.vocab_size, **SHAPES["llama"]))
    with pytest.raises(UserError, match=r"has the token <\|system\|> twice, so other programs would read a wrong id"):
        export(open_source(save_run(tmp_path / "old", model, old)), to, tmp_path / to)


def test_a_name_that_is_taken_is_refused(tmp_path, run_command):
    hub_folder(tmp_path / "model", "gpt2")
    assert run_command("import_", "model").code == 0
    again = run_command("import_", "model")
    assert again.code == 2
    assert "exists already" in again.err


def test_a_run_is_not_imported_and_its_deletion_is_not_advised(tmp_path):
    run = write_run(read_model(hub_folder(tmp_path / "gpt2", "gpt2")[0]), tmp_path / "run")
    with pytest.raises(UserError, match="is a run of Positron already, so every command can use it"):
        import_run(str(run.folder), run.folder)


def test_an_option_of_another_kind_of_model_is_refused(whole, tmp_path):
    path, _ = llama2c_files(tmp_path)
    for name, options, message in [
        (whole, {"tokenizer": path.with_name("tokenizer.bin")}, r"--tokenizer .* which .*model is not: leave it out"),
        ("some/model", {"tokenizer": path.with_name("tokenizer.bin")}, r"--tokenizer .* which some/model is not"),
        (whole, {"revision": "v1"}, r"--revision .* but .*model is on this machine: leave it out"),
        (path, {"revision": "v1"}, r"--revision .* but .*model.bin is on this machine"),
    ]:
        with pytest.raises(UserError, match=message):
            import_run(str(name), tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_an_imported_run_is_not_continued_under_its_own_name(tmp_path):
    run = write_run(read_model(hub_folder(tmp_path / "gpt2", "gpt2")[0]), tmp_path / "run")
    with pytest.raises(
        UserError, match="is an imported model, which cannot be continued under its own name: give another"
    ):
        refuse_differences(run, run.settings())


def test_a_folder_that_is_no_run_is_in_the_way_of_init_from(tmp_path, monkeypatch):
    hub_folder(tmp_path / "model", "gpt2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "model").mkdir(parents=True)
    with pytest.raises(UserError, match="because this folder exists and is not a run: rename or delete the folder"):
        importing.import_source_run("model")


def test_python_imports_as_the_command_does(tmp_path, monkeypatch):
    hub_folder(tmp_path / "model", "gpt2")
    monkeypatch.chdir(tmp_path)
    run = positron.import_model(tmp_path / "model", name="mine")
    assert run.kind == "pretrain"
    assert run.config()["data"]["source"] == "imported"


def changed(key: str, value: Any) -> Any:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))

    return change


def without(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def cut(name: str, share: float) -> Any:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return change


def written(name: str, content: str | bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def indexed(content: str) -> Any:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(content)

    return change


def tensors(change: Any) -> Any:
    def apply(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        read = load_file(folder / "model.safetensors")
        change(read)
        save_file(read, folder / "model.safetensors")

    return apply


def vocabulary(change: Any) -> Any:
    def apply(folder: Path) -> None:
        facts = json.loads((folder / "tokenizer.json").read_text())
        change(facts)
        (folder / "tokenizer.json").write_text(json.dumps(facts))

    return apply


def beginning(config: dict[str, Any], id_of_token: int | None = None) -> Any:
    added = [] if id_of_token is None else [{"id": id_of_token, "content": END_OF_TEXT, "special": True}]

    def apply(folder: Path) -> None:
        vocabulary(lambda facts: facts.update(added_tokens=added))(folder)
        for key, value in config.items():
            changed(key, value)(folder)

    return apply


NORM = "model.norm.weight"
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4096\n"
MALFORMED: list[tuple[Any, str]] = [
    (without("config.json"), "config.json"),
    (written("config.json", "{"), "config.json"),
    (written("config.json", "[]"), "must contain a JSON object"),
    (
        written("config.json", "{}"),
        "config.json: model_type is missing: download the file again, or add the type of this model (gpt2,",
    ),
    (changed("model_type", "lama"), "did you mean llama"),
    (changed("model_type", "gpt_neox"), "model_type 'gpt_neox' is not supported: choose a model of one of the types"),
    (changed("model_type", ["llama"]), "not supported"),
    (changed("rope_scaling", {"type": "linear", "factor": 2.0}), "rope_scaling"),
    (changed("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0}), "rope_parameters"),
    (
        changed("rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 0.25}),
        "rope_parameters: Positron does not support partial_rotary_factor=",
    ),
    (changed("rope_parameters", {"rope_theta": "large"}), "rope_parameters: rope_theta must be a positive number"),
    (changed("rope_parameters", [1e4]), "rope_parameters must be an object"),
    (changed("partial_rotary_factor", 0.25), "partial_rotary_factor"),
    (changed("hidden_act", ["silu"]), "hidden_act"),
    (changed("head_dim", "8"), 'head_dim must be a positive number below 1e12, not "8"'),
    (changed("num_hidden_layers", 1.5), "num_hidden_layers must be a whole number, not 1.5: correct the value, or"),
    (changed("hidden_act", "gelu"), "hidden_act"),
    (changed("final_logit_softcapping", 30.0), "final_logit_softcapping"),
    (changed("use_parallel_residual", True), "use_parallel_residual=true"),
    (changed("hidden_size", "32"), "hidden_size"),
    (changed("hidden_size", None), "hidden_size is missing: add it"),
    (changed("hidden_size", -32), "hidden_size"),
    (changed("hidden_size", 1e300), "hidden_size"),
    (changed("num_hidden_layers", 3), "model.layers.2"),
    (changed("num_hidden_layers", 1), "which the architecture in config.json does not have"),
    (changed("num_hidden_layers", True), "num_hidden_layers"),
    (changed("num_attention_heads", 5), "n_head"),
    (changed("num_key_value_heads", 3), "n_kv_head"),
    (changed("num_key_value_heads", 4), "has the shape"),
    (changed("intermediate_size", 50), "has the shape"),
    (changed("vocab_size", 300), "has the shape"),
    (changed("max_position_embeddings", 0), "max_position_embeddings"),
    (changed("rms_norm_eps", 0), "rms_norm_eps"),
    (changed("tie_word_embeddings", "yes"), "tie_word_embeddings"),
    (changed("attention_bias", True), "bias"),
    *(
        (
            lambda folder, first=first: [
                changed(key, value)(folder)
                for key, value in [("model_type", "qwen2"), ("use_sliding_window", True), ("max_window_layers", first)]
            ],
            message,
        )
        for first, message in [
            (1, "only some layers have a sliding window"),
            (-1, "max_window_layers must be a positive"),
        ]
    ),
    (without("model.safetensors"), "has no weights"),
    (cut("model.safetensors", 0.5), "damaged or incomplete"),
    (written("model.safetensors", b""), "damaged or incomplete"),
    (
        indexed('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}'),
        "is missing, but model.safetensors.index.json lists it",
    ),
    (
        indexed('{"weight_map": {"a": "../../x.safetensors"}}'),
        "Positron reads files only from the folder of the index",
    ),
    (indexed('{"weight_map": 3}'), "weight_map"),
    (indexed("[1]"), "has no valid weight_map"),
    (tensors(lambda read: read.pop(NORM)), "has no tensor model.norm.weight"),
    (tensors(lambda read: read.update({NORM: torch.zeros(31)})), "model.norm.weight has the shape"),
    (
        tensors(lambda read: read[NORM].__setitem__(3, math.nan)),
        "its tensor model.norm.weight contains NaN or infinite values: download the model again",
    ),
    (tensors(lambda read: read.update(extra=torch.zeros(1))), "contain the tensor extra, which"),
    (without("tokenizer.json"), "tokenizer.json"),
    (cut("tokenizer.json", 0.5), "tokenizer.json"),
    (written("tokenizer.json", "{}"), "(the key 'model' is missing)"),
    (written("tokenizer.json", "[1]"), "(a value has the wrong type)"),
    (written("tokenizer.json", "{"), "(not JSON: "),
    (vocabulary(lambda facts: facts["model"]["vocab"].update({f"new{i}": V + i for i in range(9)})), "does not belong"),
    (
        vocabulary(lambda facts: facts["model"]["vocab"].update({max(facts["model"]["vocab"]): 2 * 10**9})),
        f"has a token with the id 2,000,000,000, and the embedding has only {V} rows, so this tokenizer does not belong",
    ),
    (vocabulary(lambda facts: facts["model"].update(type="Unknown")), "the tokenizers library cannot read it ("),
    *(
        (
            vocabulary(lambda facts, step=step: facts.update(pre_tokenizer=step, decoder=None)),
            "removes the spaces of a text",
        )
        for step in (
            {"type": "Whitespace"},
            {"type": "WhitespaceSplit"},
            {"type": "BertPreTokenizer"},
            {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
            {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Whitespace"},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
                ],
            },
        )
    ),
    (beginning({"bos_token_id": None, "eos_token_id": None}), "does not say which token begins a text"),
    (beginning({"bos_token_id": V}), f"has the id {V}, but the model has only {V} tokens: set bos_token_id"),
    (beginning({"bos_token_id": None, "eos_token_id": -1}), f"has the id -1, but the model has only {V} tokens"),
    (
        beginning({"bos_token_id": 0}, id_of_token=-1),
        f"{END_OF_TEXT} in added_tokens has the impossible id -1, not one from 0 to {V - 1}",
    ),
    (beginning({"bos_token_id": 0}, id_of_token=V), "does not belong"),
    (written("generation_config.json", "{"), "generation_config.json"),
    (written("generation_config.json", "[]"), "generation_config.json"),
    (written("model.safetensors", LFS_POINTER), "model.safetensors is a git-lfs pointer"),
    (written("tokenizer.json", LFS_POINTER), "tokenizer.json is a git-lfs pointer"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub_folder(tmp_path_factory.mktemp("import") / "model", "tinyllama")[0]


@pytest.mark.parametrize(("change", "message"), MALFORMED)
def test_a_malformed_folder_is_refused_in_one_line(change, message, whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    change(folder)
    with pytest.raises(UserError) as refused:
        write_run(read_model(folder), tmp_path / "run")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_transformers_is_not_a_run_and_is_imported_where_init_from_names_it(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = shutil.copytree(whole, tmp_path / "theirs").name
    with pytest.raises(UserError, match=r"theirs is not a run.*import the model first with .*theirs$"):
        find_run(name)
    assert needs_import(name)
    assert importing.import_source_run(name) == importing.import_source_run(name) == "outputs/theirs"
    assert find_run(name).folder == Path("outputs/theirs")


@pytest.mark.parametrize("name", ["b/theirs", "owner/theirs"])
def test_init_from_refuses_the_run_of_another_model_of_the_same_name(name, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        shutil.copytree(whole, tmp_path / folder / "theirs")
    assert importing.import_source_run("a/theirs") == importing.import_source_run(str(tmp_path / "a" / "theirs"))
    advice = f" {name} --name NEW and give init_from=NEW, or give init_from=outputs/theirs to begin with this run"
    with pytest.raises(UserError, match=f"because this run was imported from a/theirs: .*{advice}$"):
        importing.import_source_run(name)
    Run(Path("outputs/theirs")).facts_path.write_text("{}")  # a run that was trained here
    with pytest.raises(UserError, match="as outputs/theirs, because this run was not imported: "):
        importing.import_source_run(name)


def test_init_from_refuses_the_import_of_older_files(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "theirs", tmp_path / "models" / "gpt2"):
        shutil.copytree(whole, folder)
    for name in ("theirs", "models/gpt2"):
        run = Run(Path(importing.import_source_run(name)))
        shutil.copy(whole / "config.json", tmp_path / name / "README.md")  # not read by an import
        assert importing.import_source_run(name) == str(run.folder)
        os.utime(tmp_path / name / "model.safetensors", (1, 1))
        assert needs_import(name)
        assert not needs_import(str(run.folder))
        with pytest.raises(UserError, match=f"was imported before the files in {name} were changed: import the model"):
            importing.import_source_run(name)
        record = read_record(run.facts_path)[0]
        write_record(run.facts_path, {key: value for key, value in record.items() if key != "imported_files"})
        assert importing.import_source_run(name) == str(run.folder)  # a run of an older version
    assert not needs_import("gpt2")


def test_a_model_whose_files_are_links_is_imported(whole, tmp_path, monkeypatch):
    """So does the cache of the Hugging Face hub store a model."""
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in whole.iterdir():
        (snapshot / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    assert importing.import_source_run("snapshots/abc") == "outputs/abc"
    path, _ = llama2c_files(tmp_path)
    for name in ("model.bin", "tokenizer.bin"):
        (snapshot / name).symlink_to(path.with_name(name))
    (snapshot / "config.json").unlink()
    assert read_model(snapshot / "model.bin").config == read_model(path).config


def test_a_broken_link_in_the_folder_of_a_model_is_not_read(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole, tmp_path / "theirs")
    (tmp_path / "theirs" / ".#config.json").symlink_to("user@host.1234:5678")  # the lock of an editor
    (tmp_path / "theirs" / "loop.bin").symlink_to("loop.bin")
    for _ in range(2):
        assert importing.import_source_run("theirs") == "outputs/theirs"


def test_a_vocabulary_that_writes_the_spaces_into_the_tokens_is_accepted(whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    steps = [
        None,
        metaspace,
        {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithNext", "invert": False},
    ]
    for step in steps:
        vocabulary(lambda facts, step=step: facts.update(pre_tokenizer=step))(folder)
        assert read_model(folder).tokenizer.keeps_spaces


def test_a_vocabulary_without_special_tokens_begins_a_text_with_the_token_of_config_json(whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    vocabulary(lambda facts: facts["added_tokens"].clear())(folder)
    assert read_model(folder).tokenizer.special_id(END_OF_TEXT) == 0


@pytest.mark.parametrize(
    "change", [lambda facts: facts.update(added_tokens=[]), lambda facts: facts.pop("added_tokens")]
)
def test_a_vocabulary_without_added_tokens_can_be_exported_again(change, whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    vocabulary(change)(folder)
    tokenizer = read_model(folder).tokenizer
    tokens = {token["content"]: token["id"] for token in tokenizer_json(tokenizer)["added_tokens"]}
    assert {token: tokens[token] for token in MARKERS} == {token: tokenizer.special_id(token) for token in MARKERS}


@pytest.mark.parametrize(
    "change", [changed("eos_token_id", V), written("generation_config.json", '{"eos_token_id": -1}')]
)
def test_an_end_of_text_that_the_vocabulary_lacks_ends_nothing(change, whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    change(folder)
    assert read_model(folder).tokenizer.end_ids == (0,)


def test_a_pickle_that_holds_code_is_refused_and_not_executed(whole, tmp_path):
    import pickle

    class Attack:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Attack()}))
    with pytest.raises(UserError, match="nothing in it was executed"):
        read_model(folder)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [{"state_dict": {"a": torch.zeros(1)}}, [torch.zeros(1)]], ids=["nested", "list"])
def test_a_pytorch_file_without_named_tensors_is_refused(content, whole, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="without named tensors: save the model's state_dict itself"):
        read_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_a_folder_is_refused_with_the_name_of_the_folder(name, whole):
    with pytest.raises(
        UserError, match=r"is one of several files of a model: give the folder of the model, .*, instead$"
    ):
        read_model(whole / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a model file of llama2.c"),
        (LFS_POINTER.encode(), "git-lfs pointer instead of the file itself: install git-lfs"),
        (struct.pack("<7i", 0, 1, 1, 1, 1, 1, 1), "impossible sizes"),
        (struct.pack("<7i", 0x616B3432, 2, 1, 1, 1, 1, 1), "has version 2 .* reads only version 0"),
        (
            struct.pack("<7i", 32, 48, 2, 5, 2, 600, 16),
            r"do not fit together \(dim=32, n_heads=5, .*: choose another file$",
        ),
        (struct.pack("<7i", 32, 48, 2, 4, 2, 600, 16) + bytes(400), "incomplete"),
        (struct.pack("<7i", 32, 48, 2, 4, 2, 600, 16) + bytes(401), "incomplete"),
    ],
)
def test_a_malformed_file_of_llama2c_is_refused_in_one_line(content, message, tmp_path):
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_model(tmp_path / "m.bin")
    assert "\n" not in str(refused.value)


def test_a_file_of_llama2c_needs_its_own_vocabulary(tmp_path):
    path, _ = llama2c_files(tmp_path)
    vocabulary_path = path.with_name("tokenizer.bin")
    content = vocabulary_path.read_bytes()
    vocabulary_path.write_bytes(content[:-3])
    with pytest.raises(UserError, match=r"is not a vocabulary file of llama2\.c"):
        read_model(path)
    vocabulary_path.unlink()
    with pytest.raises(UserError, match="needs its vocabulary file: give --tokenizer"):
        read_model(path)


def test_every_reader_is_of_a_class_that_transformers_has():
    for kind in hf_reading._READERS:
        assert kind in transformers.CONFIG_MAPPING
