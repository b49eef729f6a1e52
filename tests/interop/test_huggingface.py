"""An exported folder is loaded by transformers itself: the same logits, the same tokens, the same text."""

import base64
import json
from typing import Any

import pytest
import torch
from saved_runs import (
    SHAPES,
    byte_pairs,
    char,
    corpus,
    gpt_config,
    greedy,
    imported_bytes,
    imported_pieces,
    odd_lines,
    random_model,
    save_run,
    sentencepiece,
    word,
)

from positron.interop import hf_architectures, huggingface
from positron.interop.formats import export
from positron.interop.rules import Contradiction, to_ours, to_theirs
from positron.interop.source import open_source
from positron.interop.tokenizer_json import tokenizer_json
from positron.system.errors import UserError
from positron.text import conversation
from positron.text.conversation import Message
from positron.text.library_json import LibraryTokenizer
from positron.text.tiktoken_bpe import TiktokenTokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS

transformers = pytest.importorskip("transformers")


def loaded(shape: dict, vocab_size: int = 40):
    """A random model of ours, and the class of transformers with the exported config and weights."""
    config = gpt_config(vocab_size, **shape)
    model = random_model(config)
    architecture = hf_architectures.choose(config)
    kind = getattr(transformers, architecture.name)
    theirs = kind(kind.config_class(**hf_architectures.config_json(architecture, config, char()))).eval()
    tensors = to_theirs(architecture.rules(config), dict(model.named_parameters()))
    fits = theirs.load_state_dict(tensors, strict=False)
    assert not fits.unexpected_keys
    assert set(fits.missing_keys) <= ({"lm_head.weight"} if config.tie_embeddings else set())
    theirs.tie_weights()
    return model, theirs


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same_logits(name):
    model, theirs = loaded(SHAPES[name])
    ids = torch.randint(40, (3, 16), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids)).abs().max() < 1e-5


@pytest.mark.parametrize("name", SHAPES)
def test_the_way_back_gives_the_same_weights_to_the_last_bit(name):
    config = gpt_config(40, **SHAPES[name])
    weights = dict(random_model(config).named_parameters())
    rules = hf_architectures.choose(config).rules(config)
    back = to_ours(rules, to_theirs(rules, weights))
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_the_way_back_refuses_what_ours_cannot_compute():
    config = gpt_config(40, **SHAPES["qwen3"])
    rules = hf_architectures.choose(config).rules(config)
    tensors = to_theirs(rules, dict(random_model(config).named_parameters()))
    tensors["model.layers.1.self_attn.q_norm.weight"] = torch.full((8,), 2.0)
    with pytest.raises(Contradiction, match=r"layers\.1\.self_attn\.q_norm\.weight contains other values than 1"):
        to_ours(rules, tensors)


@pytest.mark.parametrize("tokenizer", [sentencepiece, char, lambda: byte_pairs("r50k_base")])
def test_a_folder_loads_and_writes_the_same_text(tokenizer, tmp_path):
    tok = tokenizer()
    model = random_model(gpt_config(tok.vocab_size, context_length=64, **SHAPES["llama"]))
    source = open_source(save_run(tmp_path / "run", model, tok))
    assert export(source, "hf", tmp_path / "hf") == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    library = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    prompt = corpus()[0][:40]
    batch = library(prompt, return_tensors="pt")  # with the mask: the first token is also the padding
    ids = batch.input_ids
    assert ids[0].tolist() == [tok.special_id(END_OF_TEXT), *tok.encode(prompt)]
    written = theirs.generate(**batch, max_new_tokens=20, do_sample=False, eos_token_id=None)[
        0, ids.shape[1] :
    ].tolist()
    assert written == greedy(model, ids[0].tolist(), 20)
    assert library.decode(tok.encode(prompt)) == prompt


def test_a_batch_padded_on_the_left_gives_the_logits_of_each_row_alone(tmp_path):
    tok = sentencepiece()
    model = random_model(gpt_config(tok.vocab_size, context_length=64, **SHAPES["arcee"]))
    export(open_source(save_run(tmp_path / "run", model, tok)), "hf", tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    library = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    prompts = [corpus()[0][:60], "Once"]
    batch = library(prompts, return_tensors="pt", padding=True)
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        together = theirs(**batch, position_ids=positions).logits[:, -1]
        for row, prompt in zip(together, prompts, strict=True):
            alone = model(torch.tensor([[tok.special_id(END_OF_TEXT), *tok.encode(prompt)]]))[0, -1]
            assert (row - alone).abs().max() < 1e-4


METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


@pytest.mark.parametrize(
    "create",
    [sentencepiece, lambda: imported_pieces(normalizer=None, pre_tokenizer=METASPACE)],
    ids=["own", "imported"],
)
def test_a_chat_template_gives_the_ids_of_a_conversation(create, tmp_path):
    tok = create()
    model = random_model(gpt_config(tok.vocab_size, context_length=64, **SHAPES["llama"]))
    export(open_source(save_run(tmp_path / "run", model, tok, chat=True)), "hf", tmp_path / "hf")
    library = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    said = [("system", "Be  brief.\n"), ("user", "A {{x}} <b> 😀?"), ("assistant", "No."), ("user", " Why?")]
    ids = library.apply_chat_template(
        [{"role": role, "content": text} for role, text in said], add_generation_prompt=True, return_dict=False
    )
    assert ids == conversation.prompt_ids([Message(*turn) for turn in said], tok)
    generation = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [*tok.end_ids, tok.special_id("<|end|>")]


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_a_chat_with_an_imported_vocabulary_has_the_ids_of_positron_and_so_has_a_text(scheme):
    import jinja2
    import tokenizers

    tok = imported_pieces(normalizer=None, pre_tokenizer={**METASPACE, "prepend_scheme": scheme})
    library = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tok, is_chat=True)))
    said = [Message("user", "Once upon"), Message("assistant", " a time"), Message("user", "Lily ran")]
    template = jinja2.Template(huggingface.chat_template(tok))
    rendered = template.render(messages=[vars(message) for message in said], add_generation_prompt=True)
    assert library.encode(rendered, add_special_tokens=False).ids == conversation.prompt_ids(said, tok)
    assert [library.encode(line, add_special_tokens=False).ids for line in corpus()] == tok.encode_batch(corpus())


def put_around_a_text(*names: str) -> dict[str, Any]:
    """A post-processor that puts <s> or </s> where `names` has it, and the text where it has A."""
    ids = {"<s>": 1, "</s>": 2}
    return {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken" if name in ids else "Sequence": {"id": name, "type_id": 0}} for name in names],
        "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in ids.items()},
    }


@pytest.mark.parametrize(
    "create",
    [
        imported_pieces,
        lambda: imported_pieces(post_processor=put_around_a_text("A", "</s>")),
        lambda: imported_pieces(post_processor=put_around_a_text("<s>", "A", "</s>")),
        lambda: imported_bytes("gpt-2"),
    ],
    ids=["nothing", "an end", "both", "offsets"],
)
@pytest.mark.parametrize("is_chat", [False, True])
def test_an_exported_imported_tokenizer_begins_a_text_as_positron_does_whatever_its_file_puts_there(create, is_chat):
    import tokenizers

    tok = create()
    facts = tokenizer_json(tok, is_chat=is_chat)
    begin = tok.special_id(END_OF_TEXT)
    library = tokenizers.Tokenizer.from_str(json.dumps(facts))
    assert library.encode("Once upon").ids == [begin, *tok.encode("Once upon")]
    assert library.encode("Once", "upon").ids == [begin, *tok.encode("Once"), *tok.encode("upon")]
    specials = {token: tok.special_id(token) for token in SPECIALS}
    again = LibraryTokenizer(json.dumps(facts).encode(), specials, tok.vocab_size, tok.end_ids)  # imported again
    assert again.encode("Once upon") == tok.encode("Once upon")
    assert tokenizer_json(again)["post_processor"] == facts["post_processor"]


def test_an_imported_tokenizer_that_begins_a_text_as_positron_does_keeps_its_post_processor():
    step = put_around_a_text("<s>", "A")
    assert tokenizer_json(imported_pieces(post_processor=step))["post_processor"] == step


@pytest.mark.parametrize(("before", "is_chat"), [([], False), ([{"type": "WhitespaceSplit"}], True)])
def test_a_space_before_texts_is_written_as_imported_without_chat_or_if_a_step_divides_texts(before, is_chat):
    steps = {"type": "Sequence", "pretokenizers": [*before, METASPACE]}
    tok = imported_pieces(normalizer=None, pre_tokenizer=steps)
    assert tokenizer_json(tok, is_chat=is_chat)["pre_tokenizer"] == steps


def test_a_base_model_has_no_chat_template(tmp_path):
    model = random_model(gpt_config(char().vocab_size))
    export(open_source(save_run(tmp_path / "run", model, char())), "hf", tmp_path / "hf")
    assert not (tmp_path / "hf" / "chat_template.jinja").exists()


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "tokenizer", [sentencepiece, char, lambda: byte_pairs("r50k_base"), lambda: byte_pairs("cl100k_base")]
)
def test_the_library_encodes_and_decodes_every_odd_line_alike(tokenizer, count):
    import tokenizers

    tok = tokenizer()
    library = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tok)))
    assert library.get_vocab_size() == tok.vocab_size
    assert [library.token_to_id(token) for token in SPECIALS] == [tok.special_id(token) for token in SPECIALS]
    library.encode_special_tokens = True  # a typed marker stays text
    lines = odd_lines(count)
    encoded = library.encode_batch(lines, add_special_tokens=False)
    ours = tok.encode_batch(lines)
    assert [line for line, a, b in zip(lines, encoded, ours, strict=True) if a.ids != b] == []
    decoded = library.decode_batch(ours, skip_special_tokens=False)
    assert [line for line, a, b in zip(lines, decoded, ours, strict=True) if a != tok.decode(b)] == []


def test_the_library_encodes_words_of_stories_alike():
    import tokenizers

    library = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(word())))
    assert all(library.encode(text, add_special_tokens=False).ids == word().encode(text) for text in corpus())


def test_the_weights_of_a_large_model_are_divided_into_files(tmp_path):
    from transformers import GPT2LMHeadModel

    model = random_model(gpt_config(char().vocab_size, bias=True))
    source = open_source(save_run(tmp_path / "run", model, char()))
    folder = tmp_path / "hf"
    export(source, "hf", folder)
    whole = huggingface.read_shards(folder)
    (folder / "model.safetensors").unlink()
    huggingface.write_shards(whole, folder, limit=30_000)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert (GPT2LMHeadModel.from_pretrained(folder)(ids).logits - model(ids)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("shape", "option"),
    [
        ({"smear": True}, "model.smear=true"),
        ({"qk_norm": True}, "model.qk_norm=true"),
        ({"activation": "swiglu"}, "model.activation=swiglu"),
        ({"window": 4}, "model.window=4"),
        ({"norm": "rmsnorm"}, "model.position=learned"),
        ({**SHAPES["apertus"], "bias": True}, "model.bias=true"),
        ({**SHAPES["arcee_gelu"], "bias": False, "window": 4}, "model.activation=gelu"),
        ({**SHAPES["stablelm"], "bias": True}, "model.bias=true"),
        ({**SHAPES["stablelm"], "window": 4}, "model.window=4"),
    ],
)
def test_a_model_without_a_class_is_refused_by_the_option_in_the_way(shape, option):
    with pytest.raises(UserError, match=option):
        hf_architectures.choose(gpt_config(40, **shape))


def test_the_card_tells_what_the_run_knows(tmp_path):
    model = random_model(gpt_config(char().vocab_size))
    run = save_run(tmp_path / "run", model, char())
    run.update(tokens=1_234_567, val_bpb=1.5, best_bpb=1.25, floor_bpb=1.0)
    export(open_source(run), "hf", tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "1,234,567" in card
    assert "1.2500 bits per byte" in card or "1.5000 bits per byte" in card
    assert "stories" in card
    assert "split_special_tokens" in card


def test_a_vocabulary_whose_end_of_text_lies_among_its_tokens_is_refused():
    """The library gives added tokens the ids after all others; p50k's <|endoftext|> is not there."""
    r50k = byte_pairs("r50k_base")
    content = "".join(f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in r50k.ranks().items())
    p50k = TiktokenTokenizer("p50k_base", r50k.pattern, content.encode(), 600, 620)
    with pytest.raises(UserError, match="p50k_base"):
        tokenizer_json(p50k)
