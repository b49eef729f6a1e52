"""The chapters of docs/learn: each number agrees with PyTorch or with plain arithmetic, and each link leads somewhere."""

import math
import re

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scripts import learn_pages
from scripts.learn_pages import PageError, chapters, find, formatted, render

CHAPTERS = {chapter.page.stem: chapter for chapter in chapters()}
FORMULA = re.compile(r"\$\$.*?\$\$", re.DOTALL)


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
    text = render(CHAPTERS[name])
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
    text = learn_pages.inline(CHAPTERS[name].draw(), "a figure")
    assert "currentColor" in text
    assert learn_pages.INK not in text
    assert not re.search(r"(fill|stroke): #(000000|ffffff)\b", text.replace('id="patch_1"', ""), re.IGNORECASE) or (
        name == "08_attention"  # numbers on coloured squares
    )


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
        (good.replace("${{ b }}$", "{{ b }}"), "only formulas show arrays"),
        (good.replace(":.0e", ""), "needs a format"),
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
