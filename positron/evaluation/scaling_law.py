"""Fit a scaling law to runs: L(N, D) = E + A / N^alpha + B / D^beta, for N parameters and D training tokens.

L is the loss in bits per byte.

The method is approach 3 of Hoffmann et al. 2022 (arXiv:2203.15556): minimise a Huber loss of the residuals of log L, from a
grid of starting points. There are three differences. First, if the entropy of the text is known, it is used as E, and the
residuals are the differences in log(L - E), so that a few runs are enough. Second, the threshold of the Huber loss is 0.1
instead of 0.001: with few runs, the small threshold would fit some runs exactly and ignore the others. Third, if N and D vary
together, their terms cannot be told apart; then a single power law is fitted, which holds only if N and D continue to vary
together in this way.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import least_squares
from scipy.special import huber, logsumexp

from positron.evaluation.statistics import t95
from positron.system.errors import UserError

Array = NDArray[np.float64]

HUBER_THRESHOLD = 0.1  # of residuals of the logarithm: errors above 10 % have no more influence than an error of 10 %
MIN_SPREAD = 0.15  # standard deviation of log N or log D; below this value, N or D counts as constant among the runs


@dataclass(frozen=True)
class Law:
    """Hold a fitted law for the bits per byte after D tokens with N parameters: E + A / N^alpha + B / D^beta.

    `terms` names the terms that are fitted: "E", "N" (A / N^alpha) and "D" (B / D^beta). If "E" is missing, E is `floor`. If
    "N" or "D" is missing, its term is 0.

    `theta` contains the fitted numbers of each term in the order of `terms`:
    "E" has one number, log E.
    "N" has two numbers: the logarithm of A / N^alpha at log N = `center["N"]`, and alpha.
    "D" has two numbers: the logarithm of B / D^beta at log D = `center["D"]`, and beta.

    A straight line is fitted to log N and log D of the runs, too. It predicts log D from log N. If the law has no term "N", the
    line predicts log N from log D instead. `slope` is the slope of this line.
    """

    terms: tuple[str, ...]  # "E" if E is fitted, then "N", "D" or both
    floor: float  # the known E; 0 if E is fitted
    center: dict[str, float]  # mean of log N and mean of log D over the runs
    slope: float  # of the straight line through the runs
    theta: Array
    covariance: Array | None  # covariance of theta; None if the runs are too few or too similar
    sigma: float | None  # standard deviation of log(loss - floor) of the runs around the law; None: too few runs
    dof: int  # degrees of freedom: number of runs minus number of fitted numbers

    @property
    def reduced(self) -> str | None:
        """Return the only variable of the law: "N" (parameters) or "D" (tokens). Return None if the law has both."""
        return None if {"N", "D"} <= set(self.terms) else self.terms[-1]

    def bpb(self, n: Any, d: Any) -> Array:
        """Predict the bits per byte, (R,), of R models with `n` parameters after `d` tokens; n and d are numbers or (R,)."""
        predicted: Array = self.floor + np.exp(log_excess(self.theta, self.terms, self._logs(n, d))[0])
        return predicted

    def interval(self, n: float, d: float) -> tuple[float, float] | None:
        """Return the 95 % interval for the bits per byte of a new run with `n` parameters after `d` tokens.

        The interval includes the uncertainty of the law and the deviation of a single run from the law. Returns None if the law
        was fitted to too few or too similar runs.
        """
        if self.covariance is None or self.sigma is None:
            return None
        mean, jacobian = log_excess(self.theta, self.terms, self._logs(n, d))
        half_width = t95(self.dof) * np.sqrt(self.sigma**2 + (jacobian @ self.covariance @ jacobian.T).item())
        low, high = mean.item() - half_width, mean.item() + half_width
        return float(self.floor + np.exp(low)), float(self.floor + np.exp(high))

    def exponent(self, term: str) -> tuple[float, float | None]:
        """Return alpha for "N" or beta for "D", and half the width of its 95 % interval (None if unknown)."""
        return self._number(self._place(term) + 1, 0.0, term)

    def log_coefficient(self, term: str) -> tuple[float, float | None]:
        """Return the natural logarithm of a coefficient of the law E + A / N^alpha + B / D^beta, and its uncertainty.

        The coefficient is A for the term "N", B for "D" and E for "E". The uncertainty is half the width of the 95 % interval
        of the logarithm, or None if it is unknown.
        """
        return self._number(self._place(term), 1.0, term)

    def coefficient(self, term: str) -> float:
        """Return a coefficient of the law E + A / N^alpha + B / D^beta: A for the term "N", B for "D" or E for "E".

        Raises ValueError if the law has no such term, or if E was not fitted but is known.
        """
        return float(np.exp(self.log_coefficient(term)[0]))

    def _place(self, term: str) -> int:
        return sum(1 if t == "E" else 2 for t in self.terms[: self.terms.index(term)])

    def _number(self, place: int, of_coefficient: float, term: str) -> tuple[float, float | None]:
        weights = np.zeros(len(self.theta))
        weights[place] = 1.0
        if of_coefficient and term != "E":  # theta is at the centre of the runs; the coefficient is at N = 1 or D = 1
            weights[place + 1] = self.center[term]
        if self.covariance is None:
            return float(weights @ self.theta), None
        half_width = t95(self.dof) * np.sqrt(weights @ self.covariance @ weights)
        return float(weights @ self.theta), float(half_width)

    def _logs(self, n: Any, d: Any) -> dict[str, Array]:
        values = {"N": n, "D": d}
        return {key: np.log(np.atleast_1d(np.asarray(v, float))) - self.center[key] for key, v in values.items()}

    def partner(self, value: float) -> float:
        """Return the tokens D for N = `value` parameters, on the straight line that was fitted to log D and log N of the runs.

        If the law has only the term "D", return the parameters N for D = `value` tokens instead.
        """
        known, unknown = ("D", "N") if self.reduced == "D" else ("N", "D")
        return float(np.exp(self.center[unknown] + self.slope * (np.log(value) - self.center[known])))

    def best_split(self, flops: float) -> tuple[float, float]:
        """Return the parameters N and tokens D with the lowest loss at 6 N D = `flops` (Hoffmann et al., eq. 4).

        Raises ValueError if the law does not have both terms, "N" and "D".
        """
        alpha, beta = self.exponent("N")[0], self.exponent("D")[0]
        ratio = self.log_coefficient("N")[0] - self.log_coefficient("D")[0] + np.log(alpha / beta)
        n = np.exp((ratio + beta * np.log(flops / 6)) / (alpha + beta))
        return float(n), float(flops / 6 / n)


def log_excess(theta: Array, terms: tuple[str, ...], logs: dict[str, Array]) -> tuple[Array, Array]:
    """Compute the log(loss - floor) that a law predicts for R runs, and its Jacobian with respect to `theta`.

    The results have the shapes (R,) and (R, len(theta)). A law for models with N parameters and D tokens has up to three terms:

        loss - floor = E + A / N^alpha + B / D^beta

    `terms` names those that the law has: "E", "N" (A / N^alpha) and "D" (B / D^beta). The logarithm of each term is computed.
    The first result is the logsumexp of these logarithms. `floor` is the known lower limit of the loss; it is 0 if the law has
    the term "E".

    `theta` contains the fitted numbers of the terms, in the order of `terms`. The term "E" has one number, log E. The term "N"
    has two numbers: log(A / N^alpha) at the point where `logs["N"]` is 0, and alpha. The term "D" has two numbers in the same
    way.

    `logs` has two arrays (R,): "N" contains log N of the runs, and "D" contains log D. From each array, the mean over the runs
    to which the law was fitted is subtracted.
    """
    rows, slopes, place = [], [], 0
    for term in terms:
        x = np.zeros_like(logs["N"]) if term == "E" else logs[term]
        rows.append(theta[place] - (0.0 if term == "E" else theta[place + 1]) * x)
        slopes += [np.ones_like(x)] if term == "E" else [np.ones_like(x), -x]
        place += 1 if term == "E" else 2
    z = np.stack(rows)
    mean: Array = logsumexp(z, axis=0)
    shares = np.exp(z - mean)
    repeated = np.repeat(shares, [1 if term == "E" else 2 for term in terms], axis=0)
    return mean, (repeated * np.stack(slopes)).T


def fit_law(parameters: ArrayLike, tokens: ArrayLike, losses: ArrayLike, floor: float | None) -> Law:
    """Fit a law to R runs. Parameters, training tokens and losses (bits per byte) are (R,).

    `floor` is the entropy of the text in bits per byte, which all losses must exceed. If it is None, the law's constant E is
    fitted instead. Raises UserError if there are fewer runs than numbers to fit, or if the runs hardly differ in parameters and
    tokens.
    """
    given = [np.asarray(values, dtype=np.float64) for values in (parameters, tokens, losses)]
    order = np.lexsort(given[::-1])  # sorted runs give the same sums in any order of the arguments
    n, d, bpb = (values[order] for values in given)
    center = {"N": float(np.log(n).mean()), "D": float(np.log(d).mean())}
    logs = {"N": np.log(n) - center["N"], "D": np.log(d) - center["D"]}
    varying = _varying(logs)
    terms = (*(("E",) if floor is None else ()), *varying)
    numbers = sum(1 if term == "E" else 2 for term in terms)
    if len(n) < numbers:
        raise UserError(
            f"the scaling law has {numbers} constants to fit, so {len(n)} runs are too few: name at least {numbers} runs of "
            "different sizes"
        )
    y = np.log(bpb - (floor or 0.0))
    theta = _fit(terms, logs, y)
    known, unknown = ("D", "N") if varying == ("D",) else ("N", "D")
    slope = float(logs[known] @ logs[unknown] / (logs[known] @ logs[known]))
    sigma, covariance = _uncertainty(theta, terms, logs, y)
    return Law(terms, floor or 0.0, center, slope, theta, covariance, sigma, len(n) - numbers)


def _varying(logs: dict[str, Array]) -> tuple[str, ...]:
    """Return the terms of the law that can be fitted, as the names of their variables: ("N", "D"), ("N",) or ("D",).

    N is the number of parameters of a run, and D the number of its training tokens. `logs` maps "N" and "D" to log N and log D
    of the runs, minus their means.

    Both terms can be fitted if the points (log N, log D) have a standard deviation of at least 0.15 (MIN_SPREAD) in every
    direction. Otherwise, N and D vary together, or one of them hardly varies. Then only one term can be fitted: the term of N
    if the standard deviation of log N is at least 0.15, or else the term of D. Raises UserError if the standard deviations of
    both are below 0.15.
    """
    both = np.stack([logs["N"], logs["D"]])
    if np.linalg.eigvalsh(both @ both.T / both.shape[1])[0] >= MIN_SPREAD**2:
        return "N", "D"
    for term in ("N", "D"):
        if logs[term].std() >= MIN_SPREAD:
            return (term,)
    raise UserError("these runs hardly differ in parameters or tokens: train runs of other sizes on the same text")


def _starts(terms: tuple[str, ...], y: Array) -> list[Array]:
    """Return a list of starting points for the search for the numbers of a law, L(N, D) = E + A / N^alpha + B / D^beta.

    L is the loss of a run with N parameters after D tokens. `terms` names the terms of the law that are fitted: "E", "N", which
    is A / N^alpha, and "D", which is B / D^beta. If "E" is missing, E is known. `y` (R,) is log L of R runs or, if E is known,
    log(L - E). A starting point is an array with the numbers of `Law.theta`, in the same order.

    The list contains all combinations of the following values. E is 0.1, 0.5 or 0.9 of the lowest L, unless it is known. Each
    of alpha and beta is 0.1, 0.4 or 1. A and B are such that the terms "N" and "D" of a run of mean size add up to the mean of
    L - E; if the law has both terms, "N" has a share of 0.1, 0.5 or 0.9 in this sum.
    """
    parts = (0.1, 0.5, 0.9) if "E" in terms else (0.0,)
    powers = [term for term in terms if term != "E"]
    shares = (0.1, 0.5, 0.9) if len(powers) == 2 else (1.0,)
    grid = []
    for part, share, *exponents in product(parts, shares, *[(0.1, 0.4, 1.0)] * len(powers)):
        known = part * np.exp(y.min())
        rest = np.log((np.exp(y) - known).mean())
        theta = [np.log(known)] if "E" in terms else []
        for term_share, exponent in zip((share, 1 - share), exponents, strict=False):
            theta += [rest + np.log(term_share), exponent]
        grid.append(np.array(theta))
    return grid


def _fit(terms: tuple[str, ...], logs: dict[str, Array], y: Array) -> Array:
    """Fit a scaling law to R runs by least squares with Huber loss, and return the fitted numbers `theta` (see `Law`).

    `terms`: the terms of the law, such as ("E", "N", "D"). `logs`: two arrays (R,), log N (parameters) and log D (tokens) of
    the runs, each minus its mean. `y` (R,): the log(loss - floor) of the runs, where floor is the known constant E of the law
    (`Law.floor`), or 0 if E is fitted. Six searches begin at those points of a grid where the Huber loss is lowest. The best of
    their results is returned.
    """

    def residuals(theta: Array) -> Array:
        return log_excess(theta, terms, logs)[0] - y

    def jacobian(theta: Array) -> Array:
        return log_excess(theta, terms, logs)[1]

    starts = sorted(_starts(terms, y), key=lambda theta: huber(HUBER_THRESHOLD, residuals(theta)).sum())
    fits = [
        least_squares(
            residuals,
            start,
            jacobian,
            loss="huber",
            f_scale=HUBER_THRESHOLD,
            x_scale="jac",
            ftol=1e-12,
            xtol=1e-12,
            gtol=1e-12,
        )
        for start in starts[:6]
    ]
    theta: Array = min(fits, key=lambda fit: fit.cost).x
    return theta


def _uncertainty(
    theta: Array, terms: tuple[str, ...], logs: dict[str, Array], y: Array
) -> tuple[float | None, Array | None]:
    """Return the standard deviation of the residuals of R runs, and the covariance matrix of the fitted numbers `theta`.

    The residuals are `y` minus the predictions of the fitted law. `y` (R,) is the log(loss - floor) of the runs. `terms` and
    `logs` are those of `log_excess`, which computes the predictions.

    The standard deviation is computed from residuals that are clipped to +-HUBER_THRESHOLD. It is then divided by the share of
    residuals that did not need to be clipped. The covariance is that of least squares with this standard deviation.

    Both results are None if there are not more runs than numbers in `theta`. Only the covariance is None if the runs are too
    similar to tell the numbers in `theta` apart.
    """
    mean, jacobian = log_excess(theta, terms, logs)
    residuals = y - mean
    dof = len(y) - len(theta)
    if dof < 1:
        return None, None
    inside = (np.abs(residuals) <= HUBER_THRESHOLD).mean()
    limited = np.clip(residuals, -HUBER_THRESHOLD, HUBER_THRESHOLD)
    sigma = float(np.sqrt((limited**2).sum() / dof) / max(inside, 1 / len(y)))
    norms = np.linalg.norm(jacobian, axis=0)
    if norms.min() == 0 or np.linalg.cond(jacobian / norms) > 1e6:
        return sigma, None
    return sigma, np.asarray(sigma**2 * np.linalg.inv(jacobian.T @ jacobian), dtype=np.float64)
