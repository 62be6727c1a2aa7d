"""The numbers of a formula from what an update has done: least squares, then round decimals."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg._identify.formula import ELSE, Formula
from thalweg._identify.layout import Array, Layout

# Of these the logarithm is looked for.
POSITIVE = ("lr", "eps", "s0", "max_value", "max_norm", "max_array_norm", "rho")
# Rounding errors in a row of steps stay below this many eps; another formula does not.
LIMIT = 64.0
ROUNDS = 30
TRIED = 3  # starts of those that come near
FAR = 1e40  # of what is no number


@dataclass
class Answers:
    """What an update has done, as vectors: ``x`` has one row more than ``g``."""

    x: Array
    g: Array
    layout: Layout
    noise: Array  # of each number in x: eps times the largest so far; infinite where it is unknown

    @classmethod
    def of(cls, x: Array, g: Array, layout: Layout, eps: float) -> "Answers":
        size = np.maximum.accumulate(np.abs(np.where(np.isfinite(x), x, 0.0)), axis=0)
        known = np.isfinite(x).all(axis=0) & (size[-1] > 0)
        noise = np.where(known, eps * np.maximum(size, 1e-6 * size[-1]), np.inf)
        return cls(x, g, layout, noise)


@dataclass
class Fit:
    formula: Formula
    numbers: dict[str, float]
    sigma: dict[str, float]
    worst: float  # the largest distance, in eps
    clip: str = ""  # where it clips, if not the gradient

    @property
    def fits(self) -> bool:
        return self.worst <= LIMIT


@np.errstate(all="ignore")
def distances(formula: Formula, numbers: dict[str, Any], answers: Answers, steps: int) -> Array:
    """In eps, by trial: of all steps and elements. Columns of numbers make as many trials."""
    trials = max(np.size(value) for value in numbers.values())
    w = np.repeat(answers.x[:1], trials, axis=0)
    state: dict[str, Array] = {}
    numbers = ELSE | numbers
    rows = []
    for t in range(steps):
        w = formula.step(w, answers.g[t], state, t, numbers, answers.layout)
        rows.append((w - answers.x[t + 1]) / answers.noise[t + 1])
    # Where an answer is unknown the noise is infinite, and the distance 0 or no number.
    found = np.where(np.isinf(answers.noise[1 : steps + 1, None]), 0.0, np.array(rows))
    found = np.nan_to_num(found, nan=FAR, posinf=FAR, neginf=-FAR).clip(-FAR, FAR)
    return found.transpose(1, 0, 2).reshape(trials, -1)


def fitted(formula: Formula, start: dict[str, float], answers: Answers, steps: int) -> Fit:
    """Levenberg and Marquardt's least squares from one start."""
    names = [*formula.numbers, *(n for n in start if n.startswith("max_") or n == "norm_eps")]
    signs = {name: -1.0 if start[name] < 0 else 1.0 for name in names}

    def numbers(thetas: Array) -> dict[str, Any]:
        """A column for each name."""
        values = {}
        for name, x in zip(names, thetas.T, strict=True):
            values[name] = (signs[name] * np.exp(x) if name in POSITIVE else x)[:, None]
        return values

    def residuals(thetas: Array) -> Array:
        return distances(formula, numbers(thetas), answers, steps)

    theta = np.array(
        [np.log(max(abs(start[n]), 1e-300)) if n in POSITIVE else start[n] for n in names]
    )
    r = residuals(theta[None])[0]
    cost, damping = float(r @ r), 1e-4
    jacobian = np.zeros((r.size, len(names)))
    for _ in range(ROUNDS):
        # From both sides: numbers whose effects are nearly the same are told apart by little.
        h = 1e-5 * np.maximum(np.abs(theta), 1e-2)
        aside = residuals(np.concatenate([theta + np.diag(h), theta - np.diag(h)]))
        jacobian = (aside[: len(h)] - aside[len(h) :]).T / (2 * h)
        normal, slope = jacobian.T @ jacobian, jacobian.T @ r
        ladder = damping * 10.0 ** np.arange(-2, 7)
        moved = np.array([theta - np.clip(_solved(normal, slope, x), -4, 4) for x in ladder])
        others = residuals(moved)
        costs = (others * others).sum(axis=1)
        k, before = int(costs.argmin()), cost
        if costs[k] < cost:
            theta, r, cost, damping = moved[k], others[k], float(costs[k]), float(ladder[k])
        if not cost < before * (1 - 1e-3):
            break
        damping = min(max(damping, 1e-15), 1e15)
    variance = np.abs(np.diag(np.linalg.pinv(jacobian.T @ jacobian, rcond=1e-30)))
    spread = dict(zip(names, np.sqrt(variance), strict=True))
    values = {name: float(value[0, 0]) for name, value in numbers(theta[None]).items()}
    sigma = {n: float(spread[n] * (abs(values[n]) if n in POSITIVE else 1.0)) for n in names}
    return Fit(formula, values, sigma, float(np.abs(r).max()))


def _solved(matrix: Array, vector: Array, damping: float) -> Array:
    matrix = matrix + damping * np.diag(np.maximum(np.diag(matrix), 1e-300))
    scale = 1 / np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    try:
        solved: Array = scale * np.linalg.solve(matrix * np.outer(scale, scale), scale * vector)
    except np.linalg.LinAlgError:
        return np.zeros_like(vector)
    return np.where(np.isfinite(solved), solved, 0.0)


def best(formula: Formula, starts: list[dict[str, float]], answers: Answers, steps: int) -> Fit:
    """From the likeliest starts, the first fit that is good enough, or else the best one."""
    own = list({tuple(start[name] for name in formula.numbers): None for start in starts})
    columns = dict(zip(formula.numbers, np.array(own).T[..., None], strict=True))
    far = np.log1p(np.abs(distances(formula, columns, answers, steps))).sum(axis=1)
    found: Fit | None = None
    for i in np.argsort(far, kind="stable")[:TRIED]:
        start = dict(zip(formula.numbers, own[i], strict=True))
        fit = fitted(formula, start, answers, steps)
        if found is None or fit.worst < found.worst:
            found = fit
        if found.fits:
            break
    assert found is not None
    return found


def rounded(value: float, sigma: float, relative: float) -> float:
    """The shortest decimal that it can be, or a third, a seventh, ... of one; 0 if it can."""
    doubt = max(8 * sigma, relative * abs(value))
    if abs(value) <= max(8 * sigma, 1e-12):
        return 0.0
    for digits in range(1, 10):
        decimal = float(f"{value:.{digits - 1}e}")
        if abs(decimal - value) <= doubt:
            return decimal
        if digits in (2, 4):
            for part in (3, 7, 9, 11, 13, 64, 128, 256, 512, 1024):
                decimal = float(f"{value * part:.{digits - 2}e}")
                if abs(decimal - value * part) <= doubt * part:
                    return decimal / part
    return value


def rounded_all(fit: Fit, eps: float) -> Iterator[dict[str, float]]:
    """From the roundest to the numbers as they were fitted: rounding errors are no pure chance, and
    how far they lead the numbers astray is seen in what comes of them."""
    for doubt, relative in (300.0, 2 * np.sqrt(eps)), (1.0, 2 * np.sqrt(eps)), (0.1, 16 * eps):
        yield {
            name: rounded(value, doubt * fit.sigma[name], relative)
            for name, value in fit.numbers.items()
        }
    yield fit.numbers


def roundest(value: float, eps: float) -> float:
    return rounded(value, 0.0, 2 * float(np.sqrt(eps)))


def is_round(value: float, eps: float) -> bool:
    """Three digits say it."""
    return bool(abs(float(f"{value:.2e}") - value) <= 2 * np.sqrt(eps) * abs(value))
