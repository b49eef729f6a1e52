"""A GGUF file holds the model, its tokenizer and its template; what llama.cpp cannot run is refused by name."""

import json
import sys
from typing import Any

import pytest
import torch
from saved_runs import (
    QWEN2,
    SHAPES,
    byte_pairs,
    char,
    gpt_config,
    imported_pieces,
    pieces,
    random_model,
    save_run,
    sentencepiece,
    word,
)

from positron.interop import gguf_file
from positron.interop.formats import export
from positron.interop.gguf_tokenizer import pieces_fit, pre_tokenizer_name
from positron.interop.source import open_source
from positron.system.errors import UserError
from positron.text.library_json import LibraryTokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS

gguf = pytest.importorskip("gguf")
FITTING = {
    **{name: SHAPES[name] for name in ("gpt2", "llama", "arcee", "qwen3", "apertus")},
    "gpt2_sinusoidal": {"position": "sinusoidal", "n_kv_head": 2, "tie_embeddings": False},
    "starcoder2": {"position": "rope", "bias": True, "n_kv_head": 2},
    "llama_untied": {**SHAPES["llama"], "n_kv_head": 2, "tie_embeddings": False},
}


def written(folder, shape, tokenizer, precision="f32", **more):
    config = gpt_config(tokenizer.vocab_size, **shape)
    source = open_source(save_run(folder / "run", random_model(config), tokenizer, **more))
    difference = export(source, "gguf", folder / "out", precision)
    return difference, gguf.GGUFReader(folder / "out" / gguf_file.FILE)


@pytest.mark.parametrize("name", FITTING)
def test_the_weights_are_read_back_to_the_last_bit(name, tmp_path):
    difference, reader = written(tmp_path, FITTING[name], sentencepiece())
    assert difference == 0
    assert reader.fields["general.architecture"].contents() == name.partition("_")[0]


def test_rounded_weights_differ_by_what_rounding_does(tmp_path):
    exact, _ = written(tmp_path / "a", SHAPES["llama"], sentencepiece())
    half, _ = written(tmp_path / "b", SHAPES["llama"], sentencepiece(), "f16")
    eighth, reader = written(tmp_path / "c", SHAPES["llama"], sentencepiece(), "q8_0")
    assert exact == 0 < half < eighth < 2
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["output_norm.weight"] == "F32"


def test_a_row_that_blocks_of_32_do_not_divide_stays_fp32(tmp_path):
    _, reader = written(tmp_path, {**SHAPES["llama"], "d_ff": 40}, sentencepiece(), "q8_0")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F32"  # rows of 40
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0"


def test_sentencepiece_keeps_pieces_scores_and_no_leading_space(tmp_path):
    tokenizer = sentencepiece()
    _, reader = written(tmp_path, SHAPES["llama"], tokenizer, chat=True)
    field = {
        name: reader.fields[f"tokenizer.ggml.{name}"].contents() for name in ("model", "tokens", "scores", "token_type")
    }
    assert field["model"] == "llama"
    assert field["tokens"] == [piece.text for piece in tokenizer.pieces()]
    assert field["scores"] == pytest.approx([piece.score for piece in tokenizer.pieces()])
    assert [field["token_type"][tokenizer.special_id(token)] for token in SPECIALS] == [3] * 5
    assert reader.fields["tokenizer.ggml.add_space_prefix"].contents() is False
    assert "<|assistant|>" in reader.fields["tokenizer.chat_template"].contents()
    assert reader.fields["tokenizer.ggml.eot_token_id"].contents() == tokenizer.special_id("<|end|>")


@pytest.mark.parametrize(("tokenizer", "pre"), [("r50k_base", "gpt-2"), ("cl100k_base", "llama-bpe")])
def test_byte_pairs_name_the_pre_tokenizer_of_llama_cpp(tokenizer, pre, tmp_path):
    tok = byte_pairs(tokenizer)
    _, reader = written(tmp_path, SHAPES["llama"], tok)
    assert reader.fields["tokenizer.ggml.pre"].contents() == pre
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == len(set(tokens)) == tok.vocab_size


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT2 = {**BYTES, "use_regex": True}


def split(pattern: str, **changes: Any) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False, **changes}


def in_turn(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(steps)}


DIGITS = {"type": "Digits", "individual_digits": True}
SPLITTING = [
    (GPT2, None, "gpt-2"),
    ({"type": "ByteLevel", "add_prefix_space": False}, None, "gpt-2"),  # an old file: the pattern is the default
    (in_turn(GPT2), None, "gpt-2"),
    (in_turn(DIGITS, GPT2), None, "smollm"),
    (in_turn(split(QWEN2), BYTES), {"type": "NFC"}, "qwen2"),
    (in_turn(split(QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")), BYTES), None, "llama-bpe"),
    (in_turn(split(QWEN2, behavior="Removed"), BYTES), None, None),
    (in_turn(split(QWEN2, invert=True), BYTES), None, None),
    (in_turn(split(QWEN2), GPT2), None, None),
    (in_turn(split(QWEN2.replace("(?i:", "(?:")), BYTES), None, None),
    (in_turn({**DIGITS, "individual_digits": False}, GPT2), None, None),
    (in_turn(GPT2, DIGITS), None, None),
    ({**GPT2, "add_prefix_space": True}, None, None),
    (BYTES, None, None),
    (GPT2, {"type": "NFKC"}, None),
    (None, None, None),
]


@pytest.mark.parametrize(("step", "normalizer", "name"), SPLITTING)
def test_a_way_to_split_a_text_has_a_name_only_if_all_its_settings_are_known(step, normalizer, name):
    assert pre_tokenizer_name({"pre_tokenizer": step, "normalizer": normalizer}) == name


PREPEND, REPLACE = {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def metaspace(scheme: str | None = None, **changes: Any) -> dict[str, Any]:
    settings = {"replacement": "▁", "split": False} | ({} if scheme is None else {"prepend_scheme": scheme})
    return {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", **settings, **changes}}


def normalizers(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"normalizer": {"type": "Sequence", "normalizers": list(steps)}}


def with_token(*, normalized: bool) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": False}
    return {
        "added_tokens": [*pieces()["added_tokens"], {"id": len(pieces()["model"]["vocab"]), "content": "<t>", **flags}]
    }


PIECES: list[tuple[dict[str, Any], bool]] = [
    ({}, True),  # Prepend, then Replace
    ({"normalizer": REPLACE}, True),
    *((metaspace(scheme), True) for scheme in ("first", "always", "never")),
    (metaspace(), True),
    (metaspace(add_prefix_space=False), True),
    (with_token(normalized=False), True),
    ({**metaspace("always"), **with_token(normalized=True)}, True),
    (with_token(normalized=True), False),
    ({**metaspace("first"), **with_token(normalized=False)}, False),
    ({"normalizer": None}, False),  # a space stays a space
    ({"normalizer": PREPEND}, False),
    (normalizers(REPLACE, PREPEND, PREPEND), False),
    (normalizers({"type": "NFKC"}, PREPEND, REPLACE), False),
    (normalizers({"type": "Lowercase"}, PREPEND, REPLACE), False),
    (normalizers({**PREPEND, "prepend": "▁▁"}, REPLACE), False),
    (normalizers(PREPEND, {**REPLACE, "pattern": {"String": "a"}}), False),
    (normalizers(PREPEND, {**REPLACE, "pattern": {"Regex": " +"}}), False),
    ({"pre_tokenizer": {"type": "Digits", "individual_digits": True}}, False),
    (metaspace("first", split=True), False),
    (metaspace("first", replacement="_"), False),
    ({**metaspace("first"), "normalizer": PREPEND}, False),
    ({"model": {**pieces()["model"], "dropout": 0.1}}, True),  # never used: LibraryTokenizer switches it off
    *(
        ({"model": {**pieces()["model"], key: value}}, False)
        for key, value in {
            "byte_fallback": False,
            "ignore_merges": True,
            "end_of_word_suffix": "w",
        }.items()
    ),
]


@pytest.mark.parametrize(("changes", "fits"), PIECES)
def test_pieces_fit_llama_cpp_only_if_all_steps_and_their_settings_are_known(changes, fits):
    assert pieces_fit({**pieces(), **changes}) is fits


def test_an_imported_vocabulary_of_pieces_that_llama_cpp_would_read_otherwise_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"another rule than Llama 2 and Mistral, so llama\.cpp would read other tokens"
    ):
        written(tmp_path / "a", SHAPES["llama"], imported_pieces(**normalizers({"type": "NFKC"}, PREPEND, REPLACE)))
    model = pieces()["model"]
    vocab = {token: i for token, i in model["vocab"].items() if token != "<0xE9>"} | {"other": model["vocab"]["<0xE9>"]}
    with pytest.raises(UserError, match="needs one token for each byte"):
        written(tmp_path / "b", SHAPES["llama"], imported_pieces(model={**model, "vocab": vocab}))


def test_an_added_token_of_a_vocabulary_of_pieces_that_is_not_special_is_found_in_texts(tmp_path):
    size = len(pieces()["model"]["vocab"])
    specials = {END_OF_TEXT: 1, **{token: size + 1 + i for i, token in enumerate(SPECIALS[1:])}}
    content = json.dumps({**pieces(), **with_token(normalized=False)}).encode()
    _, reader = written(tmp_path, SHAPES["llama"], LibraryTokenizer(content, specials, size + 5, (2, 1)))
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    assert types[size] == 4  # user-defined
    assert [types[i] for i in (0, 1, 2, *range(size + 1, size + 5))] == [2, *[3] * 6]


@pytest.mark.parametrize(("scheme", "tells"), [("first", True), ("never", False)])
def test_an_export_of_metaspace_tells_which_texts_get_another_token(scheme, tells, tmp_path, logged):
    written(tmp_path, SHAPES["llama"], imported_pieces(**metaspace(scheme)))
    assert ("a text that begins with a space gets one more token" in " ".join(logged)) is tells


def test_the_name_in_the_file_is_none_by_which_llama_cpp_changes_the_tokenizer(tmp_path):
    config = gpt_config(sentencepiece().vocab_size, **SHAPES["llama"])
    source = open_source(save_run(tmp_path / "My-Phi-3_phi3", random_model(config), sentencepiece()))
    export(source, "gguf", tmp_path / "out")
    name = gguf.GGUFReader(tmp_path / "out" / gguf_file.FILE).fields["general.name"].contents()
    assert name == "My-Phi 3_phi 3"


def test_characters_are_written_as_byte_level_tokens(tmp_path):
    _, reader = written(tmp_path, SHAPES["gpt2"], char())
    assert reader.fields["tokenizer.ggml.tokens"].contents()[char().encode(" ")[0]] == "Ġ"


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"smear": True}, "model.smear=true"),
        ({"window": 4}, "model.window=4"),
        ({"activation": "relu2"}, "model.activation=relu2"),
        ({**SHAPES["llama"], "bias": True}, "model.bias=true"),
        ({"norm": "rmsnorm"}, "model.position=learned"),
        ({"qk_norm": True}, "model.qk_norm=true"),
        ({**SHAPES["arcee"], "activation": "gelu"}, "model.activation=gelu"),
    ],
)
def test_a_model_without_an_architecture_is_refused_by_the_option_in_the_way(shape, message):
    with pytest.raises(UserError, match=message):
        gguf_file.choose(gpt_config(40, **shape))


def test_a_unigram_vocabulary_is_refused_because_its_scores_are_not_those_of_merges(tmp_path):
    facts = pieces()
    vocab = [[token, -float(i)] for token, i in facts["model"]["vocab"].items()]
    facts = {**facts, "model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, "byte_fallback": True}}
    specials = {END_OF_TEXT: 1, **{token: len(vocab) + i for i, token in enumerate(SPECIALS[1:])}}
    tokenizer = LibraryTokenizer(json.dumps(facts).encode(), specials, len(vocab) + len(SPECIALS) - 1)
    with pytest.raises(UserError, match=r"is a Unigram model, .* use --to hf"):
        written(tmp_path, SHAPES["llama"], tokenizer)
    assert not list((tmp_path / "out").glob("*"))


def test_words_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match=r"no tokenizer like tokenizer.kind=word: use --to hf"):
        written(tmp_path, SHAPES["llama"], word())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_window_as_long_as_the_context_changes_nothing(tmp_path):
    difference, _ = written(tmp_path, {**SHAPES["llama"], "window": 16}, sentencepiece())
    assert difference == 0


def test_the_interleaved_rope_of_llama_turns_each_head_by_itself():
    config = gpt_config(40, **SHAPES["llama"], n_kv_head=2)
    rules = {rule.theirs: rule for rule in gguf_file.LLAMA.rules(config)}
    rows = torch.arange(32.0)[:, None].expand(32, 32)  # the number of each row: four heads of eight
    turned = rules["blk.0.attn_q.weight"].forth([rows])[:, 0].tolist()
    assert turned[:8] == [0, 4, 1, 5, 2, 6, 3, 7]
    assert turned[8:10] == [8, 12]


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"needs the package gguf: pip install 'positron\[gguf\]'$"):
        written(tmp_path, SHAPES["llama"], sentencepiece())
