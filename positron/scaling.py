"""Predict the loss of a larger run by a formula of model size and amount of text, which is fitted to finished runs.

positron train -m experiment=size_sweep
positron scaling outputs/sweeps/sizes
positron scaling outputs/small outputs/medium outputs/large --predict 20M,400M
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.system.command_parser import CommandParser
from positron.system.console import say_loading
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.formatting import amount, counted, read_amount
from positron.system.log import screen_log

if TYPE_CHECKING:
    from positron.evaluation.scaling_law import Law
    from positron.evaluation.scaling_points import Size

logger = logging.getLogger("positron.scaling")  # under `python -m` the module is called __main__


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = CommandParser("scaling", __doc__)
    parser.add_argument("runs", nargs="+", help="a sweep's folder, or run folders or names: at least 3 finished runs")
    parser.add_argument(
        "--predict",
        metavar="N[,D]",
        help="predict the loss of a model with N parameters after D training tokens (default: twice the parameters of the "
        "largest run, or twice its tokens if all runs have the same number of parameters)",
    )
    parser.add_argument(
        "--png",
        metavar="FILE",
        help="write the plot of the fitted formula to this file (default: scaling.png beside the runs)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser


def main() -> None:
    """Run `positron scaling` with the options in `sys.argv`."""
    with errors_as_one_line(), screen_log():
        options = arguments().parse_args()
        say_loading("the runs")
        target = parse_size(options.predict) if options.predict else (None, None)
        from positron.evaluation import comparison
        from positron.evaluation.run_plots import scaling_picture
        from positron.evaluation.scaling_law import fit_law
        from positron.evaluation.scaling_points import read_sizes
        from positron.run.folder import OUTPUTS
        from positron.system.disk import expanded, refuse_no_place, whole_file

        runs = comparison.find_runs(options.runs, OUTPUTS)
        path = expanded(options.png) if options.png else _beside(options.runs, runs[0].folder)
        refuse_no_place(path)
        sizes, floor = read_sizes(runs)
        n, d, bpb = ([getattr(size, name) for size in sizes] for name in ("parameters", "tokens", "bpb"))
        law = fit_law(n, d, bpb, floor)
        facts = summary(law, sizes, next_size(law, sizes, *target))
        print(json.dumps(facts, indent=2) if options.json else "\n" + "\n".join(lines(law, facts)))
        picture = scaling_picture(law, n, d, bpb, (facts["next"]["parameters"], facts["next"]["tokens"]))
        with whole_file(path, instead="give --png FILE") as file:
            file.write(picture)
        logger.info(f"wrote the picture {path}")


def _beside(names: list[str], first: Path) -> Path:
    folder = Path(names[0]) if len(names) == 1 and Path(names[0]).is_dir() else first.parent
    return folder / "scaling.png"


def parse_size(text: str) -> tuple[float, float | None]:
    """Return the numbers of parameters and tokens (None if absent) in a text such as 2M or 2M,40M.

    Raises UserError for any other text.
    """
    numbers = [read_amount(part) for part in text.split(",")]
    if len(numbers) > 2 or not all(1 <= number < math.inf for number in numbers):
        raise UserError(
            f"--predict {text} cannot be read: give a number of parameters, such as 2M, or numbers of parameters and tokens, "
            "such as 2M,40M"
        )
    return numbers[0], numbers[1] if len(numbers) == 2 else None


def next_size(law: Law, sizes: list[Size], n: float | None, d: float | None) -> tuple[float, float]:
    """Return the number of parameters N and of tokens D whose loss is to be predicted: `n` and `d`, or defaults for None.

    By default, N is twice the N of the largest run, and D has the same ratio D / N as in the largest run. The defaults differ
    in two cases, in which the law has only one variable:
        If N determines D in the runs (for example, 20 tokens for each parameter), the default D follows this relation.
        If all runs have the same N, the default N is this N, and the default D is twice the largest D of the runs.
    In the first case, the law holds only for N and D that follow the relation. In the second case, it holds only for the N of
    the runs. Raises UserError for other N and D.
    """
    from positron.evaluation.scaling_law import MIN_SPREAD

    largest = sizes[-1]
    if law.reduced == "D":
        d = d if d is not None else 2 * max(size.tokens for size in sizes)
        n = n if n is not None else law.partner(d)
        is_outside = abs(math.log(n / law.partner(d))) > MIN_SPREAD
    else:
        n = n if n is not None else 2 * largest.parameters
        d = d if d is not None else law.partner(n) if law.reduced else n * largest.tokens / largest.parameters
        is_outside = law.reduced is not None and abs(math.log(d / law.partner(n))) > MIN_SPREAD
    if is_outside:
        like_runs = (law.partner(d), d) if law.reduced == "D" else (n, law.partner(n))
        other = "models of other sizes" if law.reduced == "D" else "models of these sizes with other numbers of tokens"
        raise UserError(
            f"--predict {amount(n)},{amount(d)} cannot be answered from these runs, in which {family(law)}: give "
            f"--predict {','.join(map(amount, like_runs))}, or add runs of {other}"
        )
    return n, d


def family(law: Law) -> str:
    """Describe the runs to which the law was fitted, as in "all models have about 2M parameters".

    The description says which number is about the same in all runs, or how the number of tokens depends on the number of
    parameters. The law must have only one variable: the parameters N or the tokens D (see `Law.reduced`).
    """
    from positron.evaluation.scaling_law import MIN_SPREAD

    if law.reduced == "D":
        return f"all models have about {amount(math.exp(law.center['N']))} parameters"
    if abs(law.slope) < MIN_SPREAD:
        return f"all models saw about {amount(math.exp(law.center['D']))} tokens"
    if abs(law.slope - 1) < MIN_SPREAD:
        return f"every model saw about {math.exp(law.center['D'] - law.center['N']):.3g} tokens for each parameter"
    return f"the number of tokens is proportional to the number of parameters to the power {law.slope:.2f}"


def summary(law: Law, sizes: list[Size], aim: tuple[float, float]) -> dict[str, Any]:
    """Return the scaling law `law` and its prediction for `aim`, (parameters, tokens), as nested dicts of numbers and texts.

    `sizes` are the sizes and results of the runs to which the law was fitted.
    """
    runs = []
    for size in sizes:
        fitted = law.bpb(size.parameters, size.tokens).item()
        runs.append({**vars(size), "fitted": fitted, "residual": size.bpb - fitted})
    facts: dict[str, Any] = {"runs": runs, "floor": law.floor or None, "reduced": None, "law": {}}
    if law.reduced:
        facts["reduced"] = (
            f"{family(law)}: the effects of parameters and tokens cannot be separated, and the law holds only for such "
            "runs"
        )
    for term in law.terms:
        value, half_width = law.log_coefficient(term)
        low_high = (
            None if half_width is None else [math.exp(value - half_width), math.exp(min(value + half_width, 700.0))]
        )
        facts["law"][term] = {"coefficient": math.exp(value), "interval": low_high}
        if term != "E":
            exponent, half_width = law.exponent(term)
            facts["law"][term] |= {"exponent": exponent, "half_interval": half_width}
    facts |= {"sigma": law.sigma, "degrees_of_freedom": law.dof}
    n, d = aim
    facts["next"] = {"parameters": n, "tokens": d, "bpb": law.bpb(n, d).item(), "interval": law.interval(n, d)}
    if law.reduced is None and min(law.exponent("N")[0], law.exponent("D")[0]) > 0:
        flops = 6 * max(size.parameters * size.tokens for size in sizes)
        n, d = law.best_split(flops)
        facts["best_split"] = {"flops": flops, "parameters": n, "tokens": d, "bpb": law.bpb(n, d).item()}
    return facts


def lines(law: Law, facts: dict[str, Any]) -> list[str]:
    """Return the text of the summary as lines; `facts` is the result of `summary`."""
    width = max(len(run["run"]) for run in facts["runs"])
    out = [f"{'run':<{width}}  parameters  (all)   tokens  per parameter  bits per byte  fitted   residual"]
    for run in facts["runs"]:
        out.append(
            f"{run['run']:<{width}}  {amount(run['parameters']):>10}  {amount(run['all_parameters']):>5}  "
            f"{amount(run['tokens']):>7}  {run['tokens'] / run['parameters']:>13.3g}  {run['bpb']:>13.4f}  "
            f"{run['fitted']:.4f}  {run['residual']:+.4f}"
        )
    names = {"N": "A / N^alpha", "D": "B / D^beta"}
    out += ["", "bits per byte = " + " + ".join(["E", *(names[term] for term in law.terms if term != "E")])]
    out.append("  N: parameters in matrix products, the output head included; D: tokens of training")
    if law.floor:
        out.append(f"  E      {law.floor:.4f}, the entropy of the text in bits per byte, which is known")
    for term, (letter, greek) in {"E": ("E", ""), "N": ("A", "alpha"), "D": ("B", "beta")}.items():
        if term not in law.terms:
            continue
        known = facts["law"][term]
        out.append(f"  {letter:<6} {known['coefficient']:.4g}{_between(known['interval'], '.4g')}")
        if greek:
            half_width = known["half_interval"]
            out.append(
                f"  {greek:<6} {known['exponent']:.3f}" + (f" ± {half_width:.3f}" if half_width is not None else "")
            )
    if facts["reduced"]:
        out.append(f"  {facts['reduced']}")
    excess = "the loss above E" if law.floor else "the loss"
    if law.sigma is not None:
        out.append(
            f"  the runs differ from the law by about {law.sigma:.1%} of {excess} ({counted(law.dof, 'run')} more than "
            "fitted constants)"
        )
    if law.covariance is None:
        out.append(
            "  these runs are too few or too similar: other constants may fit as well, and their uncertainty is unknown"
        )
    n, d = facts["next"]["parameters"], facts["next"]["tokens"]
    out += [
        "",
        f"prediction for {amount(n)} parameters and {amount(d)} tokens: {facts['next']['bpb']:.4f} bits per byte"
        + _between(facts["next"]["interval"], ".4f"),
    ]
    if "best_split" in facts:
        best = facts["best_split"]
        out.append(
            f"the compute of the largest run ({best['flops']:.2g} operations) is spent best on {amount(best['parameters'])} "
            f"parameters and {amount(best['tokens'])} tokens: {best['bpb']:.4f} bits per byte"
        )
    return out


def _between(interval: Any, shape: str) -> str:
    return f" (95 %: {interval[0]:{shape}} to {interval[1]:{shape}})" if interval else ""


if __name__ == "__main__":
    main()
