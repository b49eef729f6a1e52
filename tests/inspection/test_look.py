"""The inside of a model: equal to the model's own output and to the NumPy implementation, for every option."""

import itertools
import json
import math
import random
from typing import get_args

import numpy as np
import pytest
import torch

from numpy_ref.attention import attention_weights
from numpy_ref.gpt import _forward
from positron.config import Activation, GPTConfig, Norm, Position
from positron.inspection.ablation import ablated, ablation_of
from positron.inspection.inside import log_probabilities, look_inside
from positron.inspection.look import MAX_TOKENS, look
from positron.inspection.scores import measure_scores, repeated_rows, repeated_scores, text_scores
from positron.model.gpt import GPT
from positron.model.kernels.attention import window_mask
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer
from positron.text.tokenizer import END_OF_TEXT

OPTIONS = {
    "norm": get_args(Norm),
    "position": get_args(Position),
    "activation": get_args(Activation),
    "n_kv_head": [4, 2, 1],
    "tie_embeddings": [True, False],
    "bias": [False, True],
    "qk_norm": [False, True],
    "qk_scale": [False, True],
    "smear": [False, True],
    "window": [None, 3],
}
PRODUCT = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]
VALID = [options for options in PRODUCT if options["qk_norm"] or not options["qk_scale"]]
SOME = random.Random(1).sample(VALID, 40)
TOKENIZER = CharTokenizer("abcdefgh ")
PROMPT = "abc head abc bead abc"


def config_of(**options):
    sizes = {"vocab_size": TOKENIZER.vocab_size, "context_length": 24, "d_model": 16, "n_layer": 2, "n_head": 4}
    return GPTConfig(**{**sizes, "d_ff": 24, **options})


def random_model(config, seed=0):
    """A model of which no parameter is 0 or 1, in float64."""
    model = GPT(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3 + 0.1)
    return model


def ids_of(config, seed=0):
    return torch.randint(config.vocab_size, (2, 17), generator=torch.Generator().manual_seed(seed))


def test_the_sample_of_architectures_has_every_value_of_every_option():
    for name, values in OPTIONS.items():
        assert {options[name] for options in SOME} == set(values)


@pytest.mark.parametrize("options", SOME, ids=str)
def test_the_inside_is_that_of_the_model_and_of_numpy(options):
    config = config_of(**options)
    model, idx = random_model(config), ids_of(config)
    inside, residuals = look_inside(model, idx), []
    hooks = [block.register_forward_hook(lambda *call: residuals.append(call[2])) for block in model.blocks]
    logits = model(idx)
    for hook in hooks:
        hook.remove()

    expected = logits.log_softmax(dim=-1)
    torch.testing.assert_close(log_probabilities(model, inside.stream[-1]), expected, rtol=0, atol=1e-7)
    for stream, residual in zip(inside.stream[1:], residuals, strict=True):
        torch.testing.assert_close(stream, residual, rtol=0, atol=1e-7)

    params = {name: value.numpy() for name, value in model.state_dict().items()}
    theirs, cache = _forward(params, config, idx.numpy(), None, None)
    got = log_probabilities(model, inside.stream[-1])
    np.testing.assert_allclose(got, torch.from_numpy(theirs).log_softmax(dim=-1), atol=1e-6)
    visible = window_mask(idx.shape[1], config.window, idx.device)
    for layer, p in enumerate(inside.attention):
        np.testing.assert_allclose(p, attention_weights(cache[f"blocks.{layer}"]["attn"]["attention"]), atol=1e-6)
        torch.testing.assert_close(p.sum(dim=-1), torch.ones(p.shape[:-1], dtype=p.dtype), rtol=0, atol=1e-12)
        assert not p[..., ~visible].any()


@pytest.mark.parametrize("options", SOME[:12], ids=str)
def test_an_ablated_part_gives_zero_and_the_model_is_unchanged(options):
    config = config_of(**options)
    model, idx = random_model(config), ids_of(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    D = config.d_head

    def without_head(module, arguments):
        x = arguments[0].clone()
        x[..., 2 * D : 3 * D] = 0
        return (x,)

    cases = [
        ({"layer": 1, "part": 2}, model.blocks[1].attn.out.register_forward_pre_hook, without_head),
        ({"layer": 0, "part": "attn"}, model.blocks[0].attn.register_forward_hook, lambda m, x, y: torch.zeros_like(y)),
        ({"layer": 1, "part": "mlp"}, model.blocks[1].mlp.register_forward_hook, lambda m, x, y: torch.zeros_like(y)),
    ]
    for ablation, register, hook in cases:
        got = ablated(model, [ablation])(idx)
        handle = register(hook)
        torch.testing.assert_close(got, model(idx), rtol=0, atol=1e-7)
        handle.remove()
        assert not torch.allclose(got, model(idx))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_ablated_model_shares_the_weights_that_do_not_change():
    model = random_model(config_of())
    other = ablated(model, [{"layer": 1, "part": 0}])
    copied = [
        name for name, p in other.named_parameters() if p.data_ptr() != dict(model.named_parameters())[name].data_ptr()
    ]
    assert copied == ["blocks.1.attn.out.weight"]
    assert other.wte.weight is model.wte.weight


@pytest.mark.parametrize(
    "options", [{}, {"n_kv_head": 2, "smear": True, "window": 5, "tie_embeddings": False}], ids=str
)
def test_look_describes_the_models_own_distribution(options):
    model = random_model(config_of(**options)).float()
    data = look(model, TOKENIZER, PROMPT, top=4, focus=3)
    ids = [TOKENIZER.special_id(END_OF_TEXT), *TOKENIZER.encode(PROMPT)]
    p = model(torch.tensor([ids])).detach()[0].double().softmax(dim=-1)

    assert [token["id"] for token in data["tokens"]] == ids
    assert data["tokens"][0] == {
        "id": ids[0],
        "text": END_OF_TEXT,
        "special": True,
        "p": None,
        "rank": None,
        "bits": None,
    }
    assert "".join(token["text"] for token in data["tokens"][1:]) == PROMPT
    for t, token in enumerate(data["tokens"][1:]):
        assert token["p"] == pytest.approx(float(p[t, ids[t + 1]]), rel=1e-4)
        assert token["bits"] == pytest.approx(-math.log2(float(p[t, ids[t + 1]])), rel=1e-4)
        assert token["rank"] == 1 + int((p[t] > p[t, ids[t + 1]] * (1 + 1e-9)).sum())
    for t, prediction in enumerate(data["next"]):
        best = p[t].topk(4)
        assert [candidate["id"] for candidate in prediction["top"]] == best.indices.tolist()
        assert [candidate["p"] for candidate in prediction["top"]] == pytest.approx(best.values.tolist(), rel=1e-4)
        assert prediction["entropy"] == pytest.approx(float(-(p[t] * p[t].log2()).sum()), rel=1e-4)
    assert data["lens"][-1] == [
        {"top": step["top"][:3], "p": after, "entropy": step["entropy"]}
        for step, after in zip(data["next"], [*(token["p"] for token in data["tokens"][1:]), None], strict=True)
    ]
    logits = torch.tensor(data["focus"]["logits"], dtype=torch.float64)
    warm = (model(torch.tensor([ids])).detach()[0, 3].double() / 0.7).softmax(dim=-1).sort(descending=True).values
    torch.testing.assert_close((logits / 0.7).softmax(dim=-1), warm, rtol=1e-4, atol=1e-6)
    for layer in data["attention"]:
        for head in layer:
            assert [len(row) for row in head] == list(range(1, len(ids) + 1))
            assert [sum(row) for row in head] == pytest.approx([1] * len(ids), abs=2e-4)
    json.dumps(data, allow_nan=False)


def test_look_compares_the_loss_with_and_without_an_ablation():
    model = random_model(config_of()).float()
    data = look(model, TOKENIZER, PROMPT, ablations=[ablation_of("0.1"), ablation_of("1.mlp")])
    tokens = look(model, TOKENIZER, PROMPT)["tokens"][1:]
    other = ablated(model, [{"layer": 0, "part": 1}, {"layer": 1, "part": "mlp"}])
    assert data["ablation"]["before"] == pytest.approx(np.mean([token["bits"] for token in tokens]), rel=1e-4)
    assert data["ablation"]["after"] == pytest.approx(
        np.mean([token["bits"] for token in look(other, TOKENIZER, PROMPT)["tokens"][1:]]), rel=1e-4
    )
    assert look(model, TOKENIZER, "")["ablation"] is None
    assert look(model, TOKENIZER, "", ablations=[ablation_of("0.1")])["ablation"]["before"] is None


def test_only_the_attention_of_the_layers_asked_for_is_returned():
    data = look(random_model(config_of()), TOKENIZER, PROMPT, attention=[1])
    assert data["attention"][0] is None
    assert len(data["attention"][1]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a" * 24}, "the prompt has 24 tokens and may have at most 23"),
        ({"ablations": [{"layer": 2, "part": 0}]}, "layer 2 does not exist: the model has the layers 0 to 1"),
        ({"ablations": [{"layer": 0, "part": 4}]}, "head 4 does not exist: each layer has the heads 0 to 3"),
        ({"attention": [-1]}, "attention names layer -1, but"),
        ({"focus": 4}, "focus=4 is not a position of the prompt: give a number from 0 to 3"),
        ({"top": 0}, "top must be between 1 and 50, not 0"),
    ],
)
def test_what_does_not_exist_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        look(random_model(config_of()), TOKENIZER, **{"prompt": "abc", **options})


def test_a_long_prompt_is_refused_even_if_the_context_is_longer():
    model = random_model(config_of(context_length=MAX_TOKENS + 8))
    with pytest.raises(UserError, match=f"may have at most {MAX_TOKENS - 1}"):
        look(model, TOKENIZER, "a" * MAX_TOKENS)


@pytest.mark.parametrize("name", ["", "0", "0.x", "a.1", "-1.0", "0.1.2", "0.attn2"])
def test_a_text_that_names_no_part_is_refused(name):
    with pytest.raises(UserError, match="does not name a part"):
        ablation_of(name)


def test_scores_of_heads_whose_attention_is_known(monkeypatch):
    model = random_model(config_of(n_layer=1, context_length=24))
    rows = repeated_rows(model, TOKENIZER)
    R = (rows.shape[1] - 1) // 2
    assert torch.equal(rows[:, 1 : 1 + R], rows[:, 1 + R :])
    T = rows.shape[1]
    p = torch.zeros(len(rows), 4, T, T)
    for t in range(T):
        p[:, 0, t, max(t - 1, 0)] = 1  # a previous-token head
        p[:, 1, t, t - R + 1 if t > R else 0] = 1  # an induction head
        p[:, 2, t, 0] = 1  # a head that looks at the first token
        p[:, 3, t, : t + 1] = 1 / (t + 1)
    monkeypatch.setattr("positron.inspection.scores._attention", lambda model, rows: p[None, : len(rows)])
    previous, induction, first = repeated_scores(model, rows)
    assert previous[0, :3].tolist() == [1, pytest.approx(0, abs=1e-6), 0]
    assert induction[0, :3].tolist() == [0, 1, 0]
    assert first[0, 2] == 1
    assert first[0, 0] == 0
    uniform = [1 / (t + 1) for t in range(R + 1, T)]
    assert induction[0, 3] == pytest.approx(np.mean(uniform), rel=1e-5)


def test_scores_on_text_sum_over_all_earlier_occurrences(monkeypatch):
    ids = [7, 3, 5, 3, 3, 5]  # 3 at positions 3 and 4, 5 at 5: the keys 2; 2 and 4; 3
    uniform = torch.tril(torch.ones(6, 6)) / torch.arange(1, 7)[:, None]
    monkeypatch.setattr("positron.inspection.scores._attention", lambda model, rows: uniform.expand(1, 1, 4, 6, 6))
    scores = text_scores(random_model(config_of(n_layer=1)), [ids])
    expected = (1 / 4 + 2 / 5 + 1 / 6) / 3
    assert scores.chance == pytest.approx(expected)
    assert scores.induction[0].tolist() == pytest.approx([expected] * 4)
    assert scores.previous[0].tolist() == pytest.approx([np.mean([1 / 3, 1 / 4, 1 / 5, 1 / 6])] * 4)


def test_the_cost_of_a_head_is_what_the_loss_rises_by_without_it():
    model = random_model(config_of()).float()
    texts = ["abc head", "bead feed a hedge"]
    scores = measure_scores(model, TOKENIZER, texts)

    def bits(model):
        tokens = [token for text in texts for token in look(model, TOKENIZER, text)["tokens"][1:]]
        return sum(token["bits"] for token in tokens) / len(tokens)

    assert scores["validation"] == sum(map(len, texts))
    assert scores["bits"] == pytest.approx(bits(model), rel=1e-4)
    for part, cost in ((2, scores["heads"][1][2]["cost"]), ("attn", scores["attn"][1]), ("mlp", scores["mlp"][1])):
        assert cost == pytest.approx(bits(ablated(model, [ablation_of(f"1.{part}")])) - bits(model), abs=1e-4)


def test_without_validation_text_there_are_no_costs():
    scores = measure_scores(random_model(config_of()), TOKENIZER, [])
    assert scores["bits"] is None
    assert scores["validation"] == 0
    assert {head["cost"] for layer in scores["heads"] for head in layer} == {None}
