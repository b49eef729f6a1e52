"""The chapters of docs/learn: each number agrees with PyTorch or with plain arithmetic, and each link leads somewhere."""

import functools
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from numpy_ref.activation import activation_forward
from numpy_ref.block import block_forward
from numpy_ref.embedding import embedding_forward, smear_forward
from numpy_ref.linear import linear_forward
from numpy_ref.loss import cross_entropy_forward
from numpy_ref.multihead import multihead_forward
from numpy_ref.norm import layernorm_forward, rmsnorm_forward
from numpy_ref.policy_gradient import kl_forward
from numpy_ref.preference import log_probs_forward
from positron.config import GPTConfig, ScheduleConfig
from positron.inference import sampling
from positron.model.gpt import GPT
from positron.training.optim import muon
from positron.training.optim.schedule import lr_at
from scripts import learn_pages
from scripts.learn_pages import PageError, chapters, find, formatted, render

CHAPTERS = {chapter.page.stem: chapter for chapter in chapters()}
FORMULA = re.compile(r"\$\$.*?\$\$", re.DOTALL)


@functools.cache
def rendered(name: str) -> str:
    return render(CHAPTERS[name])


def t(array) -> torch.Tensor:
    """Return a float64 tensor that records its gradient."""
    return torch.tensor(np.asarray(array), dtype=torch.float64, requires_grad=True)


def equal(got, wanted, tolerance: float = 1e-12) -> None:
    wanted = wanted.detach().numpy() if isinstance(wanted, torch.Tensor) else np.asarray(wanted)
    assert np.shape(got) == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=tolerance)


def example(name: str):
    chapter = CHAPTERS[name]
    return chapter.module.example(), chapter.module.exercises()


def slopes(f, x, h: float = 1e-6) -> np.ndarray:
    """Approximate the gradient of a function of an array by central differences."""
    x = np.array(x, dtype=np.float64)
    out = np.empty_like(x)
    for place in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][place] += h
        moved[1][place] -= h
        out[place] = (f(moved[0]) - f(moved[1])) / (2 * h)
    return out


# ---- what holds for every chapter


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_shows_each_of_its_values_and_links_to_functions_that_exist(name):
    text = rendered(name)
    assert "{{" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for path, line in re.findall(r"\]\(\.\./\.\./([\w/]+\.py)#L(\d+)\)", text):
        source = (learn_pages.ROOT / path).read_text(encoding="utf-8").splitlines()
        assert re.match(r"\s*(def|class|@)", source[int(line) - 1])


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_section_with_a_formula_names_a_function(name):
    before_exercises = CHAPTERS[name].markdown.partition("\n## Exercises")[0]
    for section in re.split(r"^## ", before_exercises, flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        if FORMULA.search(section) and title != "By hand":
            assert re.search(r"\{\{ (source|code): ", section), title


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_three_exercises_with_folded_answers(name):
    chapter = CHAPTERS[name]
    exercises = chapter.markdown.partition("\n## Exercises\n")[2]
    assert re.findall(r"^\*\*(\d)\.\*\*", exercises, re.MULTILINE) == ["1", "2", "3"]
    assert exercises.count('??? success "Answer"') == 3
    answers = chapter.module.exercises()
    assert len(answers) == 3
    for answer in answers:
        for key in answer:
            assert re.search(rf"\{{\{{ {key}\b", exercises), key


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_figure_takes_the_colours_of_the_page(name):
    text = re.findall("<figure.*?</figure>", rendered(name), re.DOTALL)[0]
    assert "currentColor" in text
    assert learn_pages.INK not in text
    if name != "08_attention":  # whose black and white numbers stand on coloured squares
        assert not re.search("#(000000|ffffff)", text, re.IGNORECASE)


def test_wrong_pages_are_refused(tmp_path):
    page = tmp_path / "01_x.md"
    page.with_suffix(".py").write_text(
        "import numpy as np\nfrom matplotlib.figure import Figure\n"
        "example = lambda: {'a': 1.0, 'b': np.eye(2), 'tiny': 1e-7}\nexercises = lambda: []\nfigure = Figure\n"
    )
    good = "{{ a }} ${{ b }}$ {{ tiny:.0e }} {{ figure: nothing }}"
    page.write_text(good)
    assert r"1 $\begin{pmatrix}1 & 0 \\ 0 & 1\end{pmatrix}$ 1 × 10⁻⁷" in render(learn_pages.load(page))
    for wrong, message in (
        (good + "{{ c }}", "c }} is not defined"),
        (good.replace("{{ a }}", ""), "does not show a"),
        (good.replace("{{ figure: nothing }}", ""), "does not show figure"),
        (good.replace("{{ figure: nothing }}", "{{ figure }}"), "needs a description"),
        (good.replace("${{ b }}$", "{{ b }}"), "only in a formula"),
        (good.replace(":.0e", ""), "give a format"),
        (good + "{{ source: numpy_ref.linear.no_such_function }}", "does not exist in numpy_ref/linear.py"),
        (good + "{{ code: no_such_package.f }}", "not in this repository"),
    ):
        page.write_text(wrong)
        with pytest.raises(PageError, match=re.escape(message)):
            render(learn_pages.load(page))


def test_numbers_are_written_for_text_and_for_formulas():
    assert formatted(0.25) == "0.25"
    assert formatted(-2.0) == "−2"
    assert formatted(1 / 3, "frac", True) == r"\tfrac{1}{3}"
    assert formatted(-0.75, "frac", True) == r"-\tfrac{3}{4}"
    assert formatted(12_345) == "12,345"
    assert formatted(12_345, "", True) == "12{,}345"
    assert formatted(1.5e-7, ".1e", True) == r"1.5 \times 10^{-7}"
    assert formatted(-math.inf, "", True) == r"-\infty"
    with pytest.raises(ValueError, match="not a simple fraction"):
        formatted(math.pi, "frac", True)


def test_code_is_found_where_it_stands():
    definition = find("numpy_ref.config.GPTConfig.ff_width")
    assert definition.path == "numpy_ref/config.py"
    assert definition.code.startswith("def ff_width(self) -> int:\n    ")


# ---- chapter by chapter, against PyTorch and plain arithmetic


def test_chapter_1_tokens():
    values, (first, second, third) = example("01_tokens")
    assert values["merge_table"].count("\n") + 1 == values["n_merges"] == 4
    assert values["vocab_size"] == 6 + 256 + 4
    counts = [int(row.split("|")[3]) for row in values["merge_table"].splitlines()]
    assert counts == [4, 4, 3, 2]  # by hand: l o, lo w, ␣ low, ␣low e
    assert first == {"slow_pieces": "`s` `low`", "slow_count": 2}
    assert second["bpb_a"] == pytest.approx(2.4 / 3.6 / math.log(2))
    assert second["bpb_b"] == pytest.approx(0.7 / math.log(2))
    assert third["byte_count"] == len("naïve 😀".encode()) == 11
    assert values["wrapped"] == 100_255 - 2**16


def test_chapter_2_linear():
    values, (first, second, third) = example("02_linear")
    x, weight, bias = (t(values[key]) for key in ("x", "W", "b"))
    y = F.linear(x, weight, bias)
    equal(values["y"], y)
    grads = torch.autograd.grad((y * t(values["dy"])).sum(), (x, weight, bias), retain_graph=True)
    for key, grad in zip(("dx", "dW", "db"), grads, strict=True):
        equal(values[key], grad)
    assert values["numeric"] == pytest.approx(values["analytic"], abs=1e-8)
    for key, grad in zip(first.values(), torch.autograd.grad(y.sum(), (x, weight, bias)), strict=True):
        equal(key, grad)
    assert second == {"flops_forward": 2**31, "flops_step": 3 * 2**31}
    count = third["products"]
    assert count * 2**14 <= 2**31 - 1 < (count + 1) * 2**14
    assert values["absorbed"] == 2**24
    assert abs(values["sequential"] - 100_000) > 100 * abs(values["pairwise"] - 100_000)


def test_chapter_3_embeddings():
    values, (first, second, third) = example("03_embeddings")
    table, ids, dy = t(values["W"]), torch.tensor([2, 0, 2]), t(values["dy"])
    y = F.embedding(ids, table)
    equal(values["y"], y)
    equal(values["dW"], torch.autograd.grad((y * dy).sum(), table)[0])
    x, share = t(values["y"]), t(values["w"])
    smeared = x + share * F.pad(x[:-1], (0, 0, 1, 0))
    equal(values["smeared"], smeared)
    for key, grad in zip(("smear_dx", "smear_dw"), torch.autograd.grad((smeared * dy).sum(), (x, share)), strict=True):
        equal(values[key], grad)
    equal(first["twice_dW"], torch.autograd.grad(F.embedding(torch.tensor([1, 1, 3]), table).sum(), table)[0])
    assert second == {"onehot_bytes": 262_144_000, "id_bytes": 16_384}
    equal(third["shift"], [[math.cos(1), math.sin(1)], [-math.sin(1), math.cos(1)]])
    assert float(torch.tensor(values["half_stop"]).half() + torch.tensor(1.0).half()) == values["half_stop"] == 2048


def test_chapter_4_loss():
    values, (first, second, third) = example("04_loss")
    z = t(np.log([1.0, 2.0, 5.0]))
    equal(values["p"], z.softmax(0))
    equal(values["p"], [1 / 8, 2 / 8, 5 / 8])
    loss = F.cross_entropy(z[None], torch.tensor([1]))
    assert values["loss"] == pytest.approx(loss.item())
    assert values["bits"] == pytest.approx(2)
    equal(values["dz"], torch.autograd.grad(loss, z)[0])
    equal(values["jacobian"], torch.autograd.functional.jacobian(lambda z: z.softmax(0), z))
    z = t(np.log([3.0, 1.0, 6.0]))
    loss = F.cross_entropy(z[None], torch.tensor([2]))
    equal(first["ex_p"], z.softmax(0))
    assert first["ex_loss"] == pytest.approx(loss.item())
    equal(first["ex_dz"], torch.autograd.grad(loss, z)[0])
    assert (second["initial"], second["initial_bits"]) == pytest.approx((math.log(4096), 12))
    assert third == {"true_mean": 3, "mean_of_means": 4}
    assert values["overflow"] == "(NaN, 0.0000)"
    assert values["far_loss"] == 200
    assert (
        values["table_error"] < (1 / 256) ** 2 / 8 * 2 * math.log(2) ** 2
    )  # h^2 / 8 times the largest second derivative


def test_chapter_5_mlp():
    values, (first, second, third) = example("05_mlp")
    x, up, down, dy = (t(values[key]) for key in ("x", "Wu", "Wd", "dy"))
    z = x @ up.T
    h = z.relu().square()
    y = h @ down.T
    for key, wanted in (("z", z), ("h", h), ("y", y)):
        equal(values[key], wanted)
    grads = torch.autograd.grad((y * dy).sum(), (h, z, up, down, x))
    for key, grad in zip(("dh", "dz", "dWu", "dWd", "dx"), grads, strict=True):
        equal(values[key], grad)
    g, u = t(math.log(3)), t(2.0)
    gated = F.silu(g) * u
    equal((values["gate_a"], values["gate_h"]), torch.stack((F.silu(g), gated)))
    equal((values["gate_dg"], values["gate_du"]), torch.stack(torch.autograd.grad(gated, (g, u))))
    relu = (x @ up.T).relu()
    equal(first["relu_h"], relu)
    equal(first["relu_y"], relu @ down.T)
    equal(first["relu_dx"], torch.autograd.grad((relu @ down.T * dy).sum(), x)[0])
    lowest = t(second["lowest_x"])
    assert torch.autograd.grad(F.silu(lowest), lowest)[0].abs() < 1e-9
    assert second["lowest_y"] == pytest.approx(F.silu(lowest).item())
    assert third["gated_width"] == math.ceil(8 * 256 / 3 / 8) * 8
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    gap = (F.gelu(grid, approximate="tanh") - F.gelu(grid)).abs().max()
    assert values["gelu_gap"] == pytest.approx(gap.item(), rel=1e-3)
    assert values["tail_64"] == pytest.approx(F.gelu(torch.tensor(-5.0).double(), approximate="tanh").item(), rel=1e-9)
    assert abs(values["tail_32"] / values["tail_64"] - 1) > 0.01
    assert values["table_error"] < 1e-4


def test_chapter_6_norm():
    values, (first, second, third) = example("06_norm")
    x, weight, bias, dy = (t(values[key]) for key in ("x", "w", "b", "dy"))
    y = F.layer_norm(x, (4,), weight, bias, 1e-5)
    equal(values["y"], y)
    equal(values["dx"], torch.autograd.grad((y * dy).sum(), x)[0])
    assert (values["m"], values["v"], values["g_mean"]) == (4, 9, 1.5)
    assert (values["r"], values["gh_mean"]) == pytest.approx((1 / 3, -1), abs=1e-5)
    by_hand = (np.array(values["g"]) - 1.5 + values["h"]) / 3
    equal(values["dx"], by_hand, 1e-5)
    x, dy = t(values["rms_x"]), t(values["rms_dy"])
    y = F.rms_norm(x, (4,), eps=1e-5)
    equal(values["rms_h"], y)
    equal(values["rms_dx"], torch.autograd.grad((y * dy).sum(), x)[0])
    x = t([0.0, 0, 4, 4])
    y = F.layer_norm(x, (4,), eps=1e-5)
    equal(first["ex_h"], y)
    equal(first["ex_dx"], torch.autograd.grad((y * t([2.0, 0, 0, 1])).sum(), x)[0])
    x = t(10 * values["rms_x"])
    equal(second["big_dx"], torch.autograd.grad((F.rms_norm(x, (4,), eps=1e-5) * dy).sum(), x)[0])
    equal(second["big_dx"], values["rms_dx"] / 10, 1e-6)
    errors = [1 - 0.2 / 0.25, 1 - third["newton_1"] / 0.25, 1 - third["newton_2"] / 0.25]
    assert errors == pytest.approx([0.2, 0.056, 0.0046], rel=0.01)
    assert values["variance_safe"] == 1
    assert values["variance_naive"] != 1


def test_chapter_7_rope():
    values, (first, second, third) = example("07_rope")
    pair, dpair = t([5.0, 10]), t([1.0, 2])
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    equal((values["a_turned"], values["b_turned"]), turn @ pair)
    equal((values["da"], values["db"]), torch.autograd.grad((turn @ pair * dpair).sum(), pair)[0])
    assert values["length_before"] == pytest.approx(values["length_after"]) == 125
    assert values["score_near"] == pytest.approx(math.cos(3))
    assert values["score_far"] == pytest.approx(math.cos(3))
    equal(first["ex_turned"], [2 * 0.8 - 0.6, 2 * 0.6 + 0.8])
    equal(first["ex_grad"], [5 * 0.6, 5 * 0.8])
    assert second["first_turn"] == pytest.approx(2 * math.pi)
    assert second["last_turn"] == pytest.approx(2 * math.pi * 10_000 ** (62 / 64))
    equal(third["value_turned"], [math.cos(3), math.sin(3)])
    assert values["cos_64"] == pytest.approx(math.cos(100_000 * 10_000 ** (-2 / 64)), abs=1e-9)
    assert abs(values["cos_32"] - values["cos_64"]) > 1e-4
    assert values["cordic_gain"] == pytest.approx(math.prod(math.sqrt(1 + 4.0**-j) for j in range(16)))
    assert values["cordic_error"] < 2.0**-15


def test_chapter_8_attention():
    values, (first, second, third) = example("08_attention")
    q, k, v, dout = t(np.ones((3, 1))), t(np.log([[1.0], [2], [3]])), t([[6.0], [3], [0]]), t(values["dO"])
    future = torch.ones(3, 3, dtype=torch.bool).triu(1)

    def weights(q, k, blocked=future):
        return (q @ k.T).masked_fill(blocked, -math.inf).softmax(-1)

    p = weights(q, k)
    out = (p @ v)[:, 0]
    equal(values["P"], p)
    equal(values["O"], out)
    dp, dq, dk, dv = torch.autograd.grad((out * dout).sum(), (p, q, k, v))
    equal(values["dP"], dp)
    for key, grad in (("dq", dq), ("dk", dk), ("dv", dv)):
        equal(values[key], grad[:, 0])
    equal(values["dots"], (dp * p).sum(-1))  # the identity of FlashAttention
    scores = t((q @ k.T).detach().masked_fill(future, -1e9))
    equal(values["dS"], torch.autograd.grad((scores.softmax(-1) @ v)[:, 0], scores, dout)[0])
    uniform = weights(t([[1.0], [1], [0]]), k)
    equal(first["uniform"], uniform[2])
    assert first["uniform_out"] == pytest.approx(3)
    near = weights(q, k, future | torch.ones(3, 3, dtype=torch.bool).tril(-2))
    equal(second["window_weights"], near[2, 1:])
    assert second["window_out"] == pytest.approx((near @ v)[2].item())
    equal(third["shifted"], (weights(q, k + 5) @ v)[:, 0])
    assert values["level"] == 36
    assert values["level_sum"] == 252


def test_chapter_9_multihead():
    values, (first, second, third) = example("09_multihead")
    x = t([[0.0, 4.0], [math.log(2), 1.0]])
    wq, wk, wv, wo = (t(values[key]) for key in ("Wq", "Wk", "Wv", "Wo"))
    dy = t([[0.0, 0.0], values["dy"]])
    q, k, v = (F.linear(x, weight) for weight in (wq, wk, wv))
    scores = [(q[:, h : h + 1] @ k.T).masked_fill(torch.ones(2, 2).triu(1).bool(), -math.inf) for h in range(2)]
    p = [s.softmax(-1) for s in scores]
    out = torch.cat([each @ v for each in p], dim=1)
    y = F.linear(out, wo)
    for key, wanted in (("P1", p[0][1]), ("P2", p[1][1]), ("O", out), ("y", y)):
        equal(values[key], wanted)
    dout, ds1, ds2, dk, dv, dx = torch.autograd.grad((y * dy).sum(), (out, *scores, k, v, x))
    for key, wanted in (
        ("dO", dout[1]),
        ("dS1", ds1[1]),
        ("dS2", ds2[1]),
        ("dk", dk[:, 0]),
        ("dv", dv[:, 0]),
        ("dx", dx),
    ):
        equal(values[key], wanted)
    assert first == {"cache_full": 2 * 12 * 12 * 64 * 1024 * 2, "cache_grouped": 2 * 12 * 3 * 64 * 1024 * 2}
    assert second["dbias"] < 1e-12
    assert dk.sum().abs() < 1e-12
    assert third["reach"] == reach(layers=4, window=64)


def reach(layers: int, window: int) -> int:
    """Find by trial how far back a token of the last layer is influenced: each layer sums over its window."""
    x = t(np.zeros(2 * layers * window))
    y = x
    for _ in range(layers):
        y = F.pad(y, (window - 1, 0)).unfold(0, window, 1).sum(-1)
    (influence,) = torch.autograd.grad(y[-1], x)
    return int((influence != 0).sum()) - 1


def test_chapter_10_gpt():
    values, (first, second, third) = example("10_gpt")
    x, dy = t(values["x"]), t(values["dy"])
    wv, wo, wu, wd = (t(values[key]) for key in ("Wv", "Wo", "Wu", "Wd"))
    h1 = F.rms_norm(x, (2,), eps=1e-5)
    attention = F.linear(F.linear(h1, wv), wo)
    middle = x + attention
    h2 = F.rms_norm(middle, (2,), eps=1e-5)
    f = F.linear(F.linear(h2, wu).relu().square(), wd)
    y = middle + f
    for key, wanted in (("h1", h1), ("a", attention), ("m", middle), ("h2", h2), ("f", f), ("y", y)):
        equal(values[key], wanted)
    dmiddle, dx = torch.autograd.grad((y * dy).sum(), (middle, x))
    equal(values["dm"], dmiddle)
    equal(values["dx"], dx)
    equal(values["dm"][0], [1, 11], 1e-4)  # by hand, without epsilon
    equal(values["dx"][0], [11.64, 9.48], 1e-4)
    config = GPTConfig(vocab_size=100, context_length=16, d_model=8, n_layer=2, n_head=2, d_ff=32)
    assert first["n_weights"] == sum(p.numel() for p in GPT(config).parameters())
    assert (second["kept"], second["variance"]) == pytest.approx((5, 0.8 * 0.2 * 5**2))
    equal(third["zero_y"], x)
    equal(third["zero_dx"], dy)
    assert values["bf16_sum"] == float(torch.tensor(100.0).bfloat16() + torch.tensor(0.1).bfloat16()) == 100
    module = CHAPTERS["10_gpt"].module
    for number in (0.1, 100.3, -1.00390625, 1.01171875):
        assert module.to_bfloat16(number) == torch.tensor(number).bfloat16().item()
    with_skip, without = module.gradient_norms(True), module.gradient_norms(False)
    assert max(with_skip) / min(with_skip) < 1.1
    assert without[0] < 1e-20 * without[-1]


def test_chapter_11_optimizers():
    values, (first, second, third) = example("11_optimizers")
    w = torch.nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
    adamw = torch.optim.AdamW([w], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step, gradient in ((1, 0.5), (2, -0.25)):
        w.grad = torch.full_like(w, gradient)
        adamw.step()
        state = adamw.state[w]
        for name, wanted in (("m", state["exp_avg"]), ("v", state["exp_avg_sq"]), ("w", w)):
            assert values[f"{name}{step}"] == pytest.approx(wanted.item(), abs=1e-12)
    assert values["m2_hat"] == pytest.approx(0.02 / 0.19)
    assert values["v2_hat"] == pytest.approx(0.015 / 0.0975)
    equal(values["five"], muon.orthogonalize(t(values["X"])))
    u, _, vt = torch.linalg.svd(t(values["X"]))
    equal(values["UV"], u @ vt)
    for key, s in (("p_large", 60 / 61), ("p_small", 11 / 61)):
        assert values[key] == pytest.approx(3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5)
    assert (values["half_square"], values["half_step"]) == (0, 1)
    for key, gradient in (("step_large", 1000.0), ("step_small", 1e-6)):
        assert first[key] == pytest.approx(0.1 * gradient / (gradient + 1e-8))
    schedule = ScheduleConfig(kind="cosine", warmup_steps=10, final_ratio=0.1)
    for step in (5, 55, 100):
        assert second[f"lr_{step}"] == pytest.approx(lr_at(step, 100, peak=1e-3, schedule=schedule))
    assert (second["lr_5"], second["lr_55"], second["lr_100"]) == pytest.approx((5e-4, 5.5e-4, 1e-4))
    assert third["clip_norm"] == 5
    equal(third["clipped"], [0.6, 0.8], 1e-6)


def test_chapter_11_each_optimizer_takes_the_steepest_step_of_its_size():
    """No step of the same size lowers the linear loss by more than those of the three sizes."""
    rng = np.random.default_rng(0)
    gradient = rng.standard_normal((3, 4))
    u, s, vt = np.linalg.svd(gradient, full_matrices=False)
    steps = rng.standard_normal((500, 3, 4))
    lengths = np.sqrt((steps**2).sum(axis=(1, 2)))
    for best, sizes, gain in (
        (gradient / np.linalg.norm(gradient), lengths, np.linalg.norm(gradient)),
        (np.sign(gradient), np.abs(steps).max(axis=(1, 2)), np.abs(gradient).sum()),
        (u @ vt, np.linalg.norm(steps, ord=2, axis=(1, 2)), s.sum()),
    ):
        assert (gradient * best).sum() == pytest.approx(gain)
        assert ((gradient * steps).sum(axis=(1, 2)) / sizes).max() < gain


def test_chapter_12_sampling():
    values, (first, second, third) = example("12_sampling")
    logits = t(np.log([0.5, 0.25, 0.15, 0.1]))
    equal(values["p"], logits.softmax(0))

    def filtered(**options):
        ids, kept = sampling.filtered(logits.detach().numpy(), **{"temperature": 1.0, **options})
        shares = np.exp(kept) / np.exp(kept).sum()
        return t([shares[list(ids).index(i)] if i in ids else 0.0 for i in range(len(logits))])

    for got, options in (
        (values["cold"], {"temperature": 0.5}),
        (values["nucleus"], {"top_p": 0.7}),
        (values["minimum"], {"min_p": 0.25}),
        (first["hot"], {"temperature": 2.0}),
        (second["both"], {"temperature": 0.5, "top_p": 0.85}),
    ):
        equal(got, filtered(**options))
    assert np.count_nonzero(filtered(top_p=0.85).detach()) == 3
    equal(third["penalized"], sampling.penalize(t([2.0, -1.0, 0.5]), [0, 1], 1.25))
    tau = t(1.0)
    p = (logits.detach() / tau).softmax(0)
    entropy = -(p * p.log()).sum()
    assert values["entropy"] == pytest.approx(entropy.item())
    slope = torch.autograd.grad(entropy, tau, retain_graph=True)[0].item()
    assert values["variance"] == pytest.approx(slope)
    assert values["slope"] == pytest.approx(slope, abs=1e-6)
    for i in range(4):  # dp / dtau = -p (z - mean z) / tau^2
        wanted = -p[i] * (logits[i] - (p * logits).sum())
        assert torch.autograd.grad(p[i], tau, retain_graph=True)[0].item() == pytest.approx(wanted.item())
    assert values["tenths"] > 1


def test_chapter_13_preference():
    values, (first, second, third) = example("13_preference")
    logits = t(np.log([[values["first"], values["second"]]] * 2))  # (2, 2, 3)
    targets = torch.tensor([[1, 0], [2, 0]])
    tokens = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    w, lose = tokens.sum(1)
    equal(values["pi"], torch.stack((w, lose)).exp())
    equal(values["pi"], [1 / 4, 1 / 6])
    rw, rl = math.log(1 / 8), math.log(1 / 4)
    equal(values["pi_ref"], np.exp([rw, rl]))
    h = w - rw - (lose - rl)
    assert values["h"] == pytest.approx(h.item()) == pytest.approx(math.log(3))

    def check(loss, names):
        assert values[names[0]] == pytest.approx(loss.item())
        for name, grad in zip(names[1:], torch.autograd.grad(loss, (w, lose), retain_graph=True), strict=False):
            assert values[name] == pytest.approx(grad.item())

    check(-F.logsigmoid(h), ("loss", "dw", "dl"))
    check(-0.9 * F.logsigmoid(h) - 0.1 * F.logsigmoid(-h), ("smoothed", "smoothed_dw"))
    check((h - 0.5) ** 2, ("ipo", "ipo_dw"))
    (dlogits,) = torch.autograd.grad(-F.logsigmoid(h), logits, retain_graph=True)
    for key, wanted in (("dz_chosen", dlogits[0]), ("dz_rejected", dlogits[1]), ("dz_shared", dlogits[:, 0].sum(0))):
        equal(values[key], wanted)
    equal(values["dz_shared"], [0, -1 / 4, 1 / 4])
    assert 1 / (1 + math.exp(-values["best_h"])) == pytest.approx(0.9)
    means = [t(rows.item()) for rows in tokens.mean(1)]
    odds = [m.exp() / (1 - m.exp()) for m in means]
    orpo = -means[0] - 0.1 * F.logsigmoid((odds[0] / odds[1]).log())
    assert values["orpo"] == pytest.approx(orpo.item())
    slopes_of_orpo = torch.autograd.grad(orpo, means)
    assert (values["orpo_dw"], values["orpo_dl"]) == pytest.approx([slope.item() for slope in slopes_of_orpo])
    assert values["naive_slope"] == 0
    assert values["safe_slope"] == pytest.approx(torch.sigmoid(torch.tensor(-20.0)).item())
    assert torch.tensor(500.0).bfloat16() + values["bf16_gap"] / 2 == 500
    assert torch.tensor(500.0).bfloat16() + values["bf16_gap"] == 502
    assert first == {"start_loss": math.log(2), "start_dw": -0.05}
    simpo = -F.logsigmoid(2 * (means[0] - means[1]) - math.log(3))
    assert second["simpo"] == pytest.approx(simpo.item()) == pytest.approx(math.log(3))
    assert second["simpo_dw"] == pytest.approx(torch.autograd.grad(simpo, means[0])[0].item())
    assert third["fallen_loss"] == pytest.approx(math.log(6 / 5))


def test_chapter_14_policy_gradient():
    values, (first, second, third) = example("14_policy_gradient")
    table = t(np.zeros((2, 2)))
    p = table.softmax(-1)
    pi = torch.stack((p[0, 0], p[0, 1] * p[1, 0], p[0, 1] * p[1, 1]))  # "end", "a end", "a a"
    equal(values["pi"], pi)
    assert values["J"] == pi[1].item() == 1 / 4
    (exact,) = torch.autograd.grad(pi[1], table, retain_graph=True)
    equal(values["exact"], exact)
    equal(values["mean"], exact)
    equal(values["a_rloo"], [1, -1])
    equal(values["a_dr"], [1 / 2, -1 / 2])
    equal(values["a_grpo"], [2**-0.5, -(2**-0.5)], 1e-9)
    logits = t(np.zeros((2, 2, 2)))
    log_p = logits.log_softmax(-1)
    loss = -(log_p[0, 0, 1] + log_p[0, 1, 0] - log_p[1, 0, 0]) / 4
    assert values["group_loss"] == pytest.approx(loss.item())
    (dlogits,) = torch.autograd.grad(loss, logits)
    equal(values["dz_first"], dlogits[0])
    equal(values["dz_second"], dlogits[1, 0])
    z, q = t(np.log([0.5, 0.5])), torch.tensor([0.25, 0.75], dtype=torch.float64)
    kl = F.kl_div(q.log(), z.log_softmax(-1), reduction="sum", log_target=True)
    assert values["kl"] == pytest.approx(kl.item()) == pytest.approx(math.log(4 / 3) / 2)
    equal(values["kl_dz"], torch.autograd.grad(kl, z)[0])
    d = torch.tensor([2.0, 2 / 3], dtype=torch.float64).log()
    for key, wanted in (("of_k1", d), ("of_k2", d**2 / 2), ("of_k3", 1 / d.exp() - 1 + d)):
        equal(values[key], wanted)
    assert values["of_k1"].mean() == pytest.approx(values["of_k3"].mean()) == pytest.approx(values["kl"])
    assert values["of_k2"].mean() > values["kl"]
    equal(first["ex_rloo"], [[1, -1 / 3, -1 / 3, -1 / 3]])
    equal(first["ex_dr"], [[3 / 4, -1 / 4, -1 / 4, -1 / 4]])
    equal(first["ex_grpo"], [[3 / 2, -1 / 2, -1 / 2, -1 / 2]], 1e-9)
    assert second["silent_hard"] == pytest.approx(
        1 - sum(math.comb(8, c) * 0.02**c * 0.98 ** (8 - c) for c in range(1, 8))
    )
    assert second["silent_half"] == 2 / 256
    assert third == {"short_token": 0.05, "long_token": 0.005, "fixed_token": 0.00390625}
    assert values["n_groups"] == 4**8
    assert values["vocabulary_bytes"] == 16 * 128 * 4096 * np.dtype(np.float32).itemsize
    assert float(values["tenth_mean"]) > 0.1
    assert values["stop_before"] == pytest.approx(7 / 8)
    assert values["stop_with"] > 0.95
    assert values["stop_without"] < 0.55


def test_chapter_14_expected_rewards_by_counting():
    values, _ = example("14_policy_gradient")
    assert values["easy"] == pytest.approx(1 - 0.7**3)
    assert values["hard"] == pytest.approx(1 - 0.98**3)


def test_chapter_14_tables_say_what_the_text_says():
    module = CHAPTERS["14_policy_gradient"].module
    errors = {name: module.estimator_errors(a, own) for name, a, own in module.ESTIMATORS}
    along, balance, error, noise = ({name: numbers[i] for name, numbers in errors.items()} for i in range(4))
    assert along["RLOO"] == pytest.approx(1)
    assert along["no baseline"] == pytest.approx(1)
    assert along["Dr. GRPO"] == pytest.approx(7 / 8)
    for name in ("no baseline", "RLOO", "Dr. GRPO"):
        assert error[name] < 1e-9
        assert balance[name] == pytest.approx(1)
    assert balance["Dr. GRPO and 1 / σ"] > 1.2
    for name in ("Dr. GRPO and 1 / own length", "Dr. GRPO and 1 / σ", "GRPO: both"):
        assert error[name] > 0.01
    assert noise["RLOO"] == pytest.approx(noise["Dr. GRPO"])
    assert noise["RLOO"] < 0.9 * noise["no baseline"]
    assert module.prompt_weight(module.rloo_advantages, 0.3) == pytest.approx(1)
    assert module.prompt_weight(module.dr_grpo_advantages, 0.3) == pytest.approx(7 / 8)
    for distance in (0.1, 1.0):
        k1, k2, k3 = (numbers for _, *numbers in module.kl_rows(distance))  # bias, deviation, along, rest
        assert (k1[0], k3[0]) == pytest.approx((0, 0), abs=1e-9)
        assert abs(k2[0]) > 1e-3
        assert k3[1] < k1[1]
        assert k1[2:] == pytest.approx([0, 0], abs=1e-9)
        assert k2[2:] == pytest.approx([1, 0], abs=1e-9)
        assert k3[3] > 1e-3


# ---- the derivations: each formula of a page, as it is written there, against differences


def gelu_slope(x):
    u, a = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3), 0.044715
    inner = math.sqrt(2 / math.pi) * (1 + 3 * a * x**2)
    return (1 + np.tanh(u)) / 2 + x / 2 * (1 - np.tanh(u) ** 2) * inner


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize(
    ("kind", "slope"),
    [
        ("relu", lambda x: (x > 0) * 1.0),
        ("relu2", lambda x: 2 * np.maximum(x, 0)),
        ("swish", lambda x: sigmoid(x) + x * sigmoid(x) * (1 - sigmoid(x))),
        ("gelu", gelu_slope),
        (
            "gelu_exact",
            lambda x: (
                (1 + np.array([math.erf(v / 2**0.5) for v in x])) / 2 + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
            ),
        ),
    ],
)
def test_the_slopes_of_chapter_5(kind, slope):
    x = np.array([-3.1, -1.0, -0.2, 0.3, 1.7])
    equal(slope(x), slopes(lambda z: activation_forward(z, kind)[0].sum(), x), 1e-8)


def test_the_jacobians_of_chapter_6():
    x, C = np.array([1.0, 3.0, 3.5, 9.0]), 4
    for forward, centred in ((layernorm_forward, 1), (rmsnorm_forward, 0)):
        h, cache = forward(x, np.ones(C))
        jacobian = cache["r"] * (np.eye(C) - centred / C - np.outer(h, h) / C)  # [i, j]: dh_j / dx_i
        for j in range(C):
            equal(jacobian[:, j], slopes(lambda z, j=j, f=forward: f(z, np.ones(C))[0][j], x), 1e-8)


def test_newtons_error_of_chapter_6():
    e, v = 0.07, 16.0
    r = CHAPTERS["06_norm"].module.newton((1 + e) / math.sqrt(v), v)
    assert r * math.sqrt(v) == pytest.approx(1 - 1.5 * e**2 - 0.5 * e**3)


DIFFERENCES = {  # a gradient of a page, the array that moves, and what the page says is moved
    "02_linear dx": lambda m: (m.X, lambda x: (linear_forward(x, m.W, m.BIAS)[0] * m.DY).sum()),
    "02_linear dW": lambda m: (m.W, lambda w: (linear_forward(m.X, w, m.BIAS)[0] * m.DY).sum()),
    "02_linear db": lambda m: (m.BIAS, lambda b: (linear_forward(m.X, m.W, b)[0] * m.DY).sum()),
    "03_embeddings dW": lambda m: (m.TABLE, lambda w: (embedding_forward(m.IDS, w)[0] * m.DY).sum()),
    "03_embeddings smear_dw": lambda m: (
        m.SHARE,
        lambda w: (smear_forward(m.TABLE[m.IDS][None], w)[0] * m.DY).sum(),
    ),
    "04_loss dz": lambda m: (m.LOGITS[0], lambda z: float(cross_entropy_forward(z[None], m.TARGET)[0])),
    "06_norm dx": lambda m: (m.X[0], lambda x: (layernorm_forward(x, m.WEIGHT, m.BIAS)[0] * m.DY).sum()),
    "06_norm rms_dx": lambda m: (m.RMS_X[0], lambda x: (rmsnorm_forward(x, m.ONES)[0] * m.RMS_DY).sum()),
    "08_attention dq": lambda m: (m.Q, lambda q: (m.attend(q, m.K)[0] * m.DOUT).sum()),
    "08_attention dk": lambda m: (m.K, lambda k: (m.attend(m.Q, k)[0] * m.DOUT).sum()),
    "09_multihead dx": lambda m: (m.X[0], lambda x: (multihead_forward(x[None], m.PARAMS, m.CONFIG)[0] * m.DY).sum()),
    "13_preference dz_chosen": lambda m: (
        m.LOGITS[0],
        lambda z: m.dpo(log_probs_forward(np.stack((z, m.LOGITS[1])), m.TARGETS)[0], 1.0)[0],
    ),
    "14_policy_gradient kl_dz": lambda m: (
        m.POLICY[0, 0],
        lambda z: float(kl_forward(z[None, None], m.REFERENCE, np.array([[1]]), 1)[0]),
    ),
    "10_gpt dx": lambda m: (m.X[0], lambda x: (block_forward(x[None], m.PARAMS, m.CONFIG)[0] * m.DY).sum()),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_gradient_agrees_with_finite_differences(name):
    chapter, key = name.split()
    module = CHAPTERS[chapter].module
    array, loss = DIFFERENCES[name](module)
    equal(module.example()[key], slopes(loss, array), 1e-7)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="KaTeX needs node")
def test_katex_understands_every_formula():
    formulas = []
    for name in CHAPTERS:
        text = re.sub(r"^```.*?^```", "", rendered(name), flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"<figure.*?</figure>", "", text, flags=re.DOTALL)
        formulas += [match[0].strip("$") for match in learn_pages.MATH.finditer(text)]
    assert len(formulas) > 500
    script = (
        f"const katex = require({str(learn_pages.ROOT / 'docs/assets/katex/katex.min.js')!r}), fs = require('fs');"
        "for (const formula of JSON.parse(fs.readFileSync(0)))"
        "  try { katex.renderToString(formula, {displayMode: true, strict: 'error'}); }"
        "  catch (error) { console.log(formula, error.message); }"
    )
    result = subprocess.run(["node", "-e", script], input=json.dumps(formulas), capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")
