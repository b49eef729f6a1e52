"""Imported models have their own tokens that begin and end a text: generation, documents and exports use those."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from saved_runs import corpus, gpt_config, imported_pieces, pieces, random_model

from positron import load
from positron.config import DataConfig, TokenizerConfig
from positron.data.corpus import prepare
from positron.data.shards import TokenFiles
from positron.evaluation.scoring import score_documents
from positron.interop import hf_architectures
from positron.interop.formats import export
from positron.interop.imported import Imported
from positron.interop.importing import read_model, write_run
from positron.interop.rules import to_theirs
from positron.interop.source import open_source
from positron.interop.tokenizer_json import tokenizer_json
from positron.serving.models import serve_run
from positron.serving.parameters import completion_call
from positron.text import conversation
from positron.text.conversation import Message
from positron.text.library_json import LibraryTokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS

tokenizers = pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")


@functools.cache
def byte_level(*specials: str, last: bool = False) -> dict[str, Any]:
    """A byte-level vocabulary whose special tokens are its first, as in SmolLM2, or its last, as in Qwen and GPT-2."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[] if last else list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    library.train_from_iterator(corpus(), trainer)
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    facts: dict[str, Any] = json.loads(library.to_str())
    return facts


@dataclasses.dataclass(frozen=True)
class Family:
    """A vocabulary, what config.json and generation_config.json say, and what must follow from them."""

    vocabulary: Any
    config: dict[str, str]
    generation: dict[str, Any]
    begin: str
    ends: tuple[str, ...]


TEXT, START, TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
FAMILIES = {
    "gpt2": Family(lambda: byte_level(TEXT, last=True), {"bos": TEXT, "eos": TEXT}, {}, TEXT, (TEXT,)),
    "smollm2": Family(lambda: byte_level(TEXT, START, TURN), {"bos": TEXT, "eos": TEXT}, {"eos": TEXT}, TEXT, (TEXT,)),
    "smollm2_instruct": Family(
        lambda: byte_level(TEXT, START, TURN), {"bos": START, "eos": TURN}, {"eos": TURN}, TEXT, (TURN, TEXT)
    ),
    "qwen": Family(
        lambda: byte_level(TEXT, START, TURN, last=True),
        {"bos": TEXT, "eos": TURN},
        {"eos": [TURN, TEXT]},
        TEXT,
        (TURN, TEXT),
    ),
    "tinyllama": Family(pieces, {"bos": "<s>", "eos": "</s>"}, {"eos": "</s>"}, "<s>", ("</s>", "<s>")),
    "llama3_instruct": Family(
        lambda: byte_level("<s>", "</s>", "<|eom|>", "<|eot|>", last=True),
        {"bos": "<s>", "eos": "</s>"},
        {"eos": ["</s>", "<|eom|>", "<|eot|>"]},
        "<s>",
        ("</s>", "<|eom|>", "<|eot|>", "<s>"),
    ),
    "without_generation_config": Family(pieces, {"bos": "<s>", "eos": "</s>"}, {}, "<s>", ("</s>", "<s>")),
}


def id_of(facts: dict[str, Any], token: str) -> int:
    return next(int(added["id"]) for added in facts["added_tokens"] if added["content"] == token)


def imported(folder: Path, name: str, always: str | None = None) -> Imported:
    """Read a model of a family. `always`: the token that this model writes after every other."""
    family = FAMILIES[name]
    facts = family.vocabulary()
    size = max(len(facts["model"]["vocab"]), *(added["id"] + 1 for added in facts["added_tokens"]))
    config = gpt_config(size, bias=True, context_length=48)
    weights = dict(random_model(config).named_parameters())
    if (
        always is not None
    ):  # the last norm gives the same vector for every text, and this token's row is the nearest to it
        direction = weights["norm_f.bias"].fill_(1.0)
        weights["norm_f.weight"].zero_()
        weights["wte.weight"][id_of(facts, always)] = 100 * direction
    from safetensors.torch import save_file

    def ids(value: str | list[str]) -> int | list[int]:
        return id_of(facts, value) if isinstance(value, str) else [id_of(facts, token) for token in value]

    folder.mkdir()
    tensors = to_theirs(hf_architectures.GPT2.rules(config), weights)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    described = {"model_type": "gpt2", "vocab_size": size, **hf_architectures.GPT2.settings(config)}
    described |= {f"{key}_token_id": ids(value) for key, value in family.config.items()}
    (folder / "config.json").write_text(json.dumps(described))
    if family.generation:
        said = {f"{key}_token_id": ids(value) for key, value in family.generation.items()}
        (folder / "generation_config.json").write_text(json.dumps(said))
    (folder / "tokenizer.json").write_text(json.dumps(facts))
    return read_model(folder)


def named(tokenizer: LibraryTokenizer, ids: list[int] | tuple[int, ...]) -> tuple[str | None, ...]:
    return tuple(tokenizer.token(i) for i in ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tokens_that_begin_and_end_a_text_are_those_of_the_model(name, tmp_path):
    family, model = FAMILIES[name], imported(tmp_path / "model", name)
    run = write_run(model, tmp_path / "run")
    for tokenizer in (model.tokenizer, LibraryTokenizer.load(run.tokenizer_folder)):
        assert tokenizer.token(tokenizer.special_id(END_OF_TEXT)) == family.begin
        assert named(tokenizer, tokenizer.end_ids) == family.ends
        assert tokenizer.hash == model.tokenizer.hash
        assert not any(tokenizer.bytes_of(i) for i in tokenizer.end_ids)


@pytest.mark.parametrize(("name", "end"), [(name, end) for name, family in FAMILIES.items() for end in family.ends])
def test_generation_stops_at_every_end(name, end, tmp_path):
    run = write_run(imported(tmp_path / "model", name, always=end), tmp_path / "run")
    text = load(run.folder).stream("Once", max_tokens=20)
    assert "".join(text) == ""
    assert text.ended


def test_generation_goes_on_after_a_token_that_ends_nothing(tmp_path):
    run = write_run(imported(tmp_path / "model", "smollm2", always=TURN), tmp_path / "run")
    text = load(run.folder).stream("Once", max_tokens=20)
    assert ("".join(text), text.ended) == ("", False)  # a special token has no text


def test_the_server_stops_a_completion_at_every_end(tmp_path):
    served = serve_run(write_run(imported(tmp_path / "model", "tinyllama"), tmp_path / "run"))
    try:
        (request,) = completion_call({"prompt": "Once"}, served).requests
    finally:
        served.worker.close()
    assert named(served.tokenizer, request.ids[:1]) == ("<s>",)
    assert set(named(served.tokenizer, sorted(request.stop_ids))) == {"<s>", "</s>"}


def test_an_answer_ends_at_the_ends_of_the_imported_model_too(tmp_path):
    tokenizer = imported(tmp_path / "model", "qwen").tokenizer
    stops = conversation.stop_ids(tokenizer)
    assert {*stops} == {*tokenizer.end_ids, *(tokenizer.special_id(token) for token in SPECIALS)}
    assert len(stops) == len(set(stops))


@pytest.mark.parametrize(
    ("name", "between"), [("tinyllama", ["</s>", "<s>"]), ("gpt2", [TEXT]), ("qwen", [TURN, TEXT])]
)
def test_a_document_begins_and_ends_as_in_the_training_of_the_model(name, between, tmp_path):
    tokenizer = imported(tmp_path / "model", name).tokenizer
    run = write_run(imported(tmp_path / "again", name), tmp_path / "run")
    texts = corpus()[:20]
    for i, text in enumerate(texts):
        (tmp_path / f"{i:02}.txt").write_text(text, encoding="utf-8")
    data = DataConfig(source="text", path=str(tmp_path / "*.txt"), dir=str(tmp_path / "data"))
    _, folder = prepare(data, TokenizerConfig(kind="huggingface"), LibraryTokenizer.load(run.tokenizer_folder))
    files = TokenFiles(folder, "train", tokenizer)
    ids = files.read(0, files.n_tokens).tolist()
    begin = tokenizer.special_id(END_OF_TEXT)
    assert ids[0] == begin
    places = [i for i, token in enumerate(ids) if token == begin][1:]
    assert len(places) > 5
    for place in places:
        assert named(tokenizer, ids[place - len(between) + 1 : place + 1]) == tuple(between)


def test_the_score_of_a_document_includes_its_own_end(tmp_path):
    """A model that writes </s> after everything gives it probability 1, and no other token any."""
    run = write_run(imported(tmp_path / "model", "tinyllama", always="</s>"), tmp_path / "run")
    writer = load(run.folder)
    (score,) = score_documents(writer.model, writer.tokenizer, [""])
    assert score.nats == pytest.approx(0, abs=1e-3)


def chat_of(folder: Path, name: str) -> Any:
    return open_source(write_run(dataclasses.replace(imported(folder / "model", name), is_chat=True), folder / "run"))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_imported_model_is_exported_with_its_own_tokens(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    family, source = FAMILIES[name], chat_of(tmp_path, name)
    export(source, "hf", tmp_path / "hf")
    library = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert len(library) == source.tokenizer.vocab_size  # no token was added
    assert library.bos_token == family.begin
    assert library.pad_token == family.ends[0]
    said = [Message("user", "Why  so?"), Message("assistant", "No."), Message("user", " Well\n")]
    messages = [{"role": turn.role, "content": turn.content} for turn in said]
    ids = library.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == conversation.prompt_ids(said, source.tokenizer)
    config = transformers.GenerationConfig.from_pretrained(tmp_path / "hf")
    ends = [*source.tokenizer.end_ids, source.tokenizer.special_id(conversation.END)]
    assert config.eos_token_id == ends
    again = read_model(tmp_path / "hf")
    assert again.is_chat
    assert again.tokenizer.special_id(END_OF_TEXT) == source.tokenizer.special_id(END_OF_TEXT)
    assert again.tokenizer.end_ids[: len(family.ends)] == source.tokenizer.end_ids


@pytest.mark.parametrize("name", FAMILIES)
def test_a_gguf_file_names_the_end_of_the_imported_model(name, tmp_path):
    gguf = pytest.importorskip("gguf")
    source = chat_of(tmp_path, name)
    export(source, "gguf", tmp_path / "out")
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    assert fields["tokenizer.ggml.bos_token_id"].contents() == source.tokenizer.special_id(END_OF_TEXT)
    assert fields["tokenizer.ggml.eos_token_id"].contents() == source.tokenizer.end_ids[0]
    assert f"'{FAMILIES[name].begin}'" in fields["tokenizer.chat_template"].contents()


def unigram() -> dict[str, Any]:
    """A vocabulary in which the score of each control token is 0, the highest, as in converted files of SentencePiece."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    library = Tokenizer(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>")
    library.train_from_iterator(["<unk> <s> </s> a<b>c/d"] * 9 + corpus()[:20], trainer)
    facts: dict[str, Any] = json.loads(library.to_str())
    return facts


def word_level() -> dict[str, Any]:
    words = ["<unk>", "<s>", "</s>", "a", "b", " "]
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"}
    return {**pieces(), "model": model, "normalizer": None, "pre_tokenizer": split, "decoder": {"type": "Fuse"}}


def with_merges(**changes: Any) -> dict[str, Any]:
    facts = json.loads(json.dumps(pieces()))
    for token in ["<", "/", ">", "<s", "</", "s>"]:
        facts["model"]["vocab"].setdefault(token, len(facts["model"]["vocab"]))
    facts["model"]["merges"] = [
        ["<", "s"],
        ["<s", ">"],
        ["<", "/"],
        ["s", ">"],
        ["</", "s>"],
        *facts["model"]["merges"],
    ]
    facts["model"] |= changes
    return facts


def plain_markers() -> dict[str, Any]:
    facts = byte_level("<unk>", "<s>", "</s>")
    return {**facts, "added_tokens": [{**token, "special": False} for token in facts["added_tokens"]]}


@pytest.mark.parametrize(
    "facts",
    [unigram, word_level, with_merges, lambda: with_merges(ignore_merges=True), plain_markers],
    ids=["unigram", "word_level", "merges", "ignore_merges", "plain_markers"],
)
def test_no_text_spells_a_special_token_whatever_the_model_of_the_vocabulary(facts):
    described = facts()
    content = json.dumps(described).encode()
    size = max(len(described["model"]["vocab"]), *(token["id"] + 1 for token in described["added_tokens"]))
    specials = {END_OF_TEXT: 1, **{token: size + i for i, token in enumerate(SPECIALS[1:])}}
    tokenizer = LibraryTokenizer(content, specials, size + len(SPECIALS) - 1, (2, 1))
    for text in ["<s>", "a</s>b", "a </s> b", "</s><s>"]:
        assert tokenizer.encode(text)
        assert not {1, 2} & set(tokenizer.encode(text))
        assert tokenizer.encode_batch([text]) == [tokenizer.encode(text)]
    library = tokenizers.Tokenizer.from_str(content.decode())
    for text in ["a b", "", *corpus()[:50]]:
        assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
    assert [tokenizer.token(i) for i in (1, 2)] == ["<s>", "</s>"]
    assert tokenizer.content == content


@pytest.mark.parametrize("facts", [unigram, word_level])
def test_text_that_an_imported_vocabulary_does_not_know_is_decoded_as_the_replacement_character(facts):
    described = facts()
    size = len(described["model"]["vocab"])
    specials = {END_OF_TEXT: 1, **{token: size + i for i, token in enumerate(SPECIALS[1:])}}
    tokenizer = LibraryTokenizer(json.dumps(described).encode(), specials, size + len(SPECIALS) - 1)
    assert tokenizer.encode("☃")[-1] == 0
    assert tokenizer.decode(tokenizer.encode("☃")) == "\N{REPLACEMENT CHARACTER}"


def test_an_export_neither_cuts_nor_pads_texts_though_the_imported_file_does():
    tokenizer = imported_pieces(
        truncation={"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 16},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<unk>",
        },
    )
    exported = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
    for text in ["a", corpus()[0]]:
        assert exported.encode(text).ids == [tokenizer.special_id(END_OF_TEXT), *tokenizer.encode(text)]


def test_dropout_of_merges_is_off_in_positron_and_in_exports():
    facts = pieces()
    tokenizer = imported_pieces(model={**facts["model"], "dropout": 0.5})
    exported = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tokenizer)))
    for text in corpus()[:5]:
        assert tokenizer.encode(text) == imported_pieces().encode(text)
        assert exported.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)
