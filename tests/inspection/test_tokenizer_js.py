"""The tokenizers of the page give the ids and the texts that those of positron.text give."""

import base64
import json
import random
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
from interop.saved_runs import byte_pairs, char, corpus, odd_lines, sentencepiece, word

from positron.inspection.page_tokenizer import page_tokenizer
from positron.interop.tokenizer_json import tokenizer_json
from positron.system.errors import UserError
from positron.text.library_json import LibraryTokenizer
from positron.text.tiktoken_bpe import DEFINITIONS, TiktokenTokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, StreamDecoder

STATIC = Path(__file__).parents[2] / "positron" / "inspection" / "static"
NODE = shutil.which("node")
HARD = [
    "",
    " ",
    "Once upon a time,  there was\n\na girl. 12345 'S it'LL we'\u017f",
    " leading and trailing  ",
    "e\u0301 é ñ 👨‍👩‍👧 中文 \U0001f600 ß ２ ½",
    '"Quotes" and <|end|> and <|endoftext|> and <unk> and <0x41>',
    "\t\r\n\x00\x1c\x85\u00a0\ufeff\u2028 tabs",
    "a\u2581b \u2581",
    "SHOUTING CamelCase don't DON'T",
]


def o200k() -> TiktokenTokenizer:
    """The merges of r50k's stand-in with the pattern of o200k_base."""
    base = byte_pairs("r50k_base")
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in base.ranks().items())
    n = len(base.ranks())
    return TiktokenTokenizer("o200k_base", DEFINITIONS["o200k_base"].pattern, "".join(lines).encode(), n, n + 1)


def imported(original, **changes) -> LibraryTokenizer:
    """A tokenizer.json that another program might have written."""
    facts = {**tokenizer_json(original), "post_processor": None, **changes}
    specials = {token: original.special_id(token) for token in SPECIALS}
    size = max(original.vocab_size, *(token["id"] + 1 for token in facts["added_tokens"]))
    return LibraryTokenizer(json.dumps(facts).encode(), specials, size)


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def split(pattern: str) -> dict:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [step, {**BYTE_LEVEL, "use_regex": False}]}


QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENIZERS = {
    "char": char,
    "word": word,
    "sentencepiece": sentencepiece,
    "r50k": lambda: byte_pairs("r50k_base"),
    "cl100k": lambda: byte_pairs("cl100k_base"),
    "o200k": o200k,
    "llama2": lambda: imported(
        sentencepiece(),
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, REPLACE]},
    ),
    "metaspace": lambda: imported(
        sentencepiece(),
        normalizer=None,
        pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
    ),
    "gpt2": lambda: imported(byte_pairs("r50k_base"), pre_tokenizer=BYTE_LEVEL),
    "smollm": lambda: imported(
        byte_pairs("r50k_base"),
        normalizer={"type": "NFC"},
        pre_tokenizer={
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
        },
    ),
    "llama3": lambda: imported(
        byte_pairs("cl100k_base"), pre_tokenizer=split(QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|"))
    ),
    "qwen2": lambda: imported(byte_pairs("cl100k_base"), pre_tokenizer=split(QWEN2)),
}


def known_to_all(line: str) -> str:
    """The line without the characters that are younger than the Unicode tables of some program here."""
    return "".join(c for c in line if unicodedata.ucd_3_2_0.category(c) != "Cn")


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """What the page's tokenizers made of all lines, in one process of node."""
    folder = tmp_path_factory.mktemp("tokenizers")
    lines = [*HARD, *odd_lines(300), "".join(corpus()[:2])]
    draw = random.Random(1)
    cases = {}
    for name, create in TOKENIZERS.items():
        tokenizer = create()
        broken = [[draw.randrange(tokenizer.vocab_size) for _ in range(40)] for _ in range(30)]
        # Python, JavaScript and the tokenizers library do not know the same letters, nor how to compose them
        read = list(map(known_to_all, lines)) if name in ("word", "smollm") else lines
        cases[name] = {"facts": page_tokenizer(tokenizer), "lines": read, "broken": broken}
    (folder / "cases.json").write_text(json.dumps(list(cases.values())))
    script = Path(__file__).with_name("tokenizer_cases.mjs")
    command = [NODE, script, STATIC, folder / "cases.json", folder / "out.json"]
    subprocess.run(list(map(str, command)), check=True, timeout=300)
    results = json.loads((folder / "out.json").read_text())
    return {name: (cases[name], result) for name, result in zip(cases, results, strict=True)}


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_page_encodes_and_decodes_as_python_does(computed, name):
    case, result = computed[name]
    tokenizer = TOKENIZERS[name]()
    specials = {tokenizer.special_id(token) for token in SPECIALS}
    for line, ids, text in zip(case["lines"], result["ids"], result["texts"], strict=True):
        assert ids == tokenizer.encode(line), line
        assert text == tokenizer.decode(ids), line
        assert not specials & set(ids), line
    for ids, text in zip(case["broken"], result["broken"], strict=True):  # bytes that are no UTF-8, special tokens
        stream = StreamDecoder(tokenizer)
        assert text == "".join(stream.push(i) for i in ids) + stream.end()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer Whitespace"),
        ({"pre_tokenizer": split(r"\w+")}, "pre_tokenizer Split"),
    ],
)
def test_an_unknown_kind_of_tokenizer_is_refused_by_name(changes, reason):
    with pytest.raises(UserError, match=reason):
        page_tokenizer(imported(byte_pairs("r50k_base"), **changes))


def test_an_added_token_that_text_may_spell_is_refused():
    original = byte_pairs("r50k_base")
    added = tokenizer_json(original)["added_tokens"]
    added.append({**added[0], "id": original.vocab_size, "content": "   ", "special": False})
    with pytest.raises(UserError, match="added token"):
        page_tokenizer(imported(original, added_tokens=added))


def test_an_unknown_token_that_the_vocabulary_lacks_is_none():
    original = byte_pairs("r50k_base")
    model = {**tokenizer_json(original)["model"], "unk_token": "<unk>"}
    assert page_tokenizer(imported(original, model=model, pre_tokenizer=BYTE_LEVEL))["unknown"] is None


def test_a_dropout_of_merges_which_positron_switches_off_does_not_matter():
    original = byte_pairs("r50k_base")
    model = tokenizer_json(original)["model"]
    random_merges = imported(original, model={**model, "dropout": 0.1}, pre_tokenizer=BYTE_LEVEL)
    assert page_tokenizer(random_merges) == page_tokenizer(imported(original, model=model, pre_tokenizer=BYTE_LEVEL))


def test_every_special_token_keeps_its_id():
    facts = page_tokenizer(char())
    assert facts["specials"][END_OF_TEXT] == char().special_id(END_OF_TEXT)
