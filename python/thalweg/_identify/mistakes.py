"""What people write instead of the rules: formulas of their own, each with the cause's name."""

from dataclasses import replace
from typing import Any

import numpy as np

from thalweg._identify.formula import Formula, Numbers, State, Step, _linear, _rooted, root
from thalweg._identify.layout import Array, Layout
from thalweg._identify.probe import LARGE, SMALL

Call = dict[str, Any]


def _sgd(numbers: dict[str, float]) -> Call:
    return {"lr": numbers["lr"]} | ({"momentum": numbers["mu"]} if numbers.get("mu") else {})


def _adagrad(placement: str) -> Any:
    def call(numbers: dict[str, float]) -> Call:
        eps = {"eps": numbers["eps"]} if numbers.get("eps", 0) > 0 else {}
        where = {"eps_placement": placement} if placement == "outside" else {}
        return {"lr": numbers["lr"]} | eps | where

    return call


def _old_velocity(w: Array, g: Array, s: State, t: int, n: Numbers, lay: Layout) -> Any:
    v = s.get("v", np.zeros_like(w))
    s["v"] = n["mu"] * v + g
    return w - n["lr"] * v


def _corrected(w: Array, g: Array, s: State, t: int, n: Numbers, lay: Layout) -> Any:
    s["v"] = v = n["mu"] * s.get("v", np.zeros_like(w)) + (1 - n["mu"]) * g
    return w - n["lr"] * v / (1 - n["mu"] ** (t + 1))


def _mixed(w: Array, g: Array, s: State, t: int, n: Numbers, lay: Layout) -> Any:
    s["v"] = v = n["mu"] * s.get("v", np.zeros_like(w)) + g
    return w - n["lr"] * (v + n["c"] * g)


def _averaged(w: Array, g: Array, s: State, t: int, n: Numbers, lay: Layout) -> Any:
    """Nesterov's look ahead in an average whose gradient has its whole weight."""
    s["v"] = v = n["mu"] * s.get("v", np.zeros_like(w)) + (1 - n["mu"]) * g
    return w - n["lr"] * (g + n["mu"] * v)


def _normed(over: str) -> Step:
    def step(w: Array, g: Array, s: State, t: int, n: Numbers, lay: Layout) -> Any:
        squares = g * g
        total = squares.sum(axis=-1, keepdims=True) if over == "all" else lay.over_array(squares)
        g = g / np.sqrt(total)
        s["v"] = v = n["mu"] * s.get("v", np.zeros_like(w)) + g
        return w - n["lr"] * v

    return step


def _signed(w: Array, g: Array, s: State, t: int, n: Numbers, lay: Layout) -> Any:
    return w - n["lr"] * np.sign(g)


def _adam(eps_first: bool) -> Step:
    def step(w: Array, g: Array, s: State, t: int, n: Numbers, lay: Layout) -> Any:
        s["v"] = n["mu"] * s.get("v", np.zeros_like(w)) + (1 - n["mu"]) * g
        s["s"] = n["rho"] * s.get("s", np.zeros_like(w)) + (1 - n["rho"]) * g * g
        v, start = s["v"] / (1 - n["mu"] ** (t + 1)), np.sqrt(1 - n["rho"] ** (t + 1))
        r = (np.sqrt(s["s"]) + n["eps"]) / start
        return w - n["lr"] * v / (r if eps_first else np.sqrt(s["s"]) / start + n["eps"])

    return step


def _squares(kind: str, placement: str) -> Step:
    """Adagrad but for how the squares are kept, or what is done with them."""

    def step(w: Array, g: Array, s: State, t: int, n: Numbers, lay: Layout) -> Any:
        old = s.get("s", np.zeros_like(w))
        squares, eps, lr = g * g, n["eps"], n["lr"]
        new = used = old + squares
        if kind == "forgotten":
            new = used = squares
        elif kind == "stale":
            used = old
        elif kind == "again":
            used = new + squares
        elif kind == "mean":
            used = new / (t + 1)
        elif kind == "decaying":
            new = used = n["rho"] * old + (1 - n["rho"]) * squares
        elif kind == "eps kept":
            new = used = new + eps
            eps = 0.0
        elif kind == "sizes":
            new = used = old + np.abs(g)
        elif kind in ("sum of array", "mean of array"):
            new = used = old + lay.over_array(squares, kind.startswith("mean"))
        elif kind == "sum of row":
            new = used = old + lay.over_row(squares, mean=False)
        elif kind == "cube root":
            s["s"] = new
            return w - lr * g / (np.cbrt(new) + eps)
        elif kind == "counted from 1":
            lr = lr / (1 + (t + 1) * n["k"])
        s["s"] = new
        if kind == "no root":
            return w - lr * g / (used + eps)
        if kind == "sizes":
            return w - lr * g / (used + eps if placement == "outside" else np.sqrt(used + eps))
        if kind == "no eps":
            eps = 0.0
        return w - lr * g / root(used, eps, placement)

    return step


def _any_rate(hints: Any) -> list[dict[str, float]]:
    sign = -1.0 if hints.response < 0 else 1.0
    return [
        {"lr": sign * lr, "eps": eps, "rho": rho, "mu": mu, "k": k, "c": 0.5, "wd": wd}
        for lr in (0.1, 1.0, 0.01, 0.001)
        for eps in (1e-8, 1e-7, 1e-6, 1e-10)
        for rho, mu, k in ((0.9, 0.9, 0.1), (0.99, 0.5, 0.9), (0.999, 0.9, 0.01))
        for wd in (hints.decay / lr, 1e-2, 1e-3)
    ]


def _momenta(hints: Any) -> list[dict[str, float]]:
    """The response of the first step, or of the second where the first has none, and its like."""
    starts = []
    for start in _linear(hints):
        for mu in dict.fromkeys((start["mu"], 0.9, 0.5)):
            for lr in (start["lr"], start["lr"] / (1 - mu) if mu < 1 else 0.1, 0.1, 0.01):
                wd = hints.decay / lr if lr else 0.0
                starts.append(start | {"mu": mu, "lr": lr, "c": 0.5, "wd": wd})
    return starts


def _both(hints: Any) -> list[dict[str, float]]:
    near = [start | {"rho": 0.9, "mu": 0.9, "c": 0.5} for start in _rooted(hints)]
    return [*near, *_any_rate(hints)]


MOMENTUM = [
    (_old_velocity, ("lr", "mu"), "the velocity is used before the gradient is added to it"),
    (
        _corrected,
        ("lr", "mu"),
        "the average is corrected for its start, divided by 1 - mu^(t + 1), as in Adam",
    ),
    (
        _averaged,
        ("lr", "mu"),
        "the velocity is an average, (1 - mu)*g, but the look ahead adds the whole g",
    ),
    (
        _mixed,
        ("lr", "mu", "c"),
        "the step is v + c*g of velocity and gradient; Nesterov's is g + mu*v",
    ),
    (_signed, ("lr",), "only the sign of the gradient is used"),
    (
        _normed("all"),
        ("lr", "mu"),
        "gradients are always divided by their norm, not only where it is too large",
    ),
    (
        _normed("array"),
        ("lr", "mu"),
        "each array's gradient is always divided by its norm, not only where it is too large",
    ),
]

SQUARES = {
    "forgotten": "the accumulator is not carried over: every step begins with its own square",
    "no eps": "eps is missing: an element that has had no gradient yet is 0/0",
    "no root": "the root is missing: the step is divided by the sum of squares itself",
    "stale": "the accumulator is used before the square is added to it",
    "again": "the square of the step counts twice: it is in the accumulator and added once more",
    "mean": "the mean of the squares is used, not their sum: steps do not become smaller",
    "decaying": "old squares fade, rho*s + (1 - rho)*g*g: that is RMSProp",
    "eps kept": "eps is added to the accumulator at every step, and so adds up",
    "sizes": "sizes |g| are accumulated, not squares",
    "sum of array": "one accumulator serves a whole array: the sum of all its squares",
    "mean of array": "one accumulator serves a whole array: the mean of all its squares",
    "sum of row": "one accumulator serves a row, as the sum of its squares; "
    'accumulator="row" takes their mean',
    "cube root": "the root is not the square root",
    "counted from 1": "the rate's decay counts steps from 1, here the first step is 0",
}


def mistakes(decays: bool | None) -> list[Formula]:
    """With weight decay, of both kinds, where there is some."""
    found = _mistakes()
    if decays is False:
        return found
    plain = found if decays is None else []
    return [*plain, *(_decayed(each, way) for each in found for way in (False, True))]


def _decayed(each: Formula, decoupled: bool) -> Formula:
    def step(w: Array, g: Array, s: State, t: int, n: Numbers, lay: Layout) -> Any:
        if decoupled:
            return each.step((1 - n["lr"] * n["wd"]) * w, g, s, t, n, lay)
        return each.step(w, g + n["wd"] * w, s, t, n, lay)

    assert each.nearest is not None
    nearest, way = each.nearest, {"decoupled": True} if decoupled else {}
    return replace(
        each,
        step=step,
        numbers=(*each.numbers, "wd"),
        nearest=lambda n: nearest(n) | {"weight_decay": abs(n["wd"])} | way,
    )


def _mistakes() -> list[Formula]:
    found = [
        Formula(step, numbers, _momenta, "SGD", {}, cause, _sgd)
        for step, numbers, cause in MOMENTUM
    ]
    for kind, cause in SQUARES.items():
        more = {"decaying": ("rho",), "counted from 1": ("k",)}.get(kind, ())
        numbers = ("lr", *(() if kind == "no eps" else ("eps",)), *more)
        for placement in ("inside", "outside"):
            if placement == "outside" and kind in ("no root", "no eps", "cube root", "eps kept"):
                continue
            step = _squares(kind, placement)
            nearest = _adagrad(placement)
            if kind == "sum of row":
                nearest = _by_row(placement)
            found.append(Formula(step, numbers, _both, "Adagrad", {}, cause, nearest))
    adam = "averages of gradients and of squares, both corrected for their start: that is Adam"
    for eps_first in (False, True):
        step, nearest = _adam(eps_first), _adagrad("outside")
        numbers = ("lr", "mu", "rho", "eps")
        found.append(Formula(step, numbers, _any_rate, "Adagrad", {}, adam, nearest))
    return found


def _by_row(placement: str) -> Any:
    call = _adagrad(placement)
    return lambda numbers: call(numbers) | {"accumulator": "row"}


def twice(each: Formula, lr: float, rate: float) -> Formula:
    """Of momentum: a rate that stands in the velocity and in the step, and changes to ``rate``."""
    nesterov = each.traits["nesterov"]

    def step(w: Array, g: Array, s: State, t: int, n: Numbers, lay: Layout) -> Any:
        now = lr if t < SMALL + LARGE else rate
        s["v"] = v = n["mu"] * s.get("v", np.zeros_like(w)) + now * (g + n["wd"] * w)
        return w - now * (now * g + n["mu"] * v if nesterov else v)

    return replace(each, step=step)
