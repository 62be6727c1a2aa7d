"""The rules as formulas with numbers to be found, and the mistakes that people make in them.

All in float64 and with every number open; how the bits come about is the optimizers' matter.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from thalweg._identify.layout import Array, Layout

State = dict[str, Array]
Numbers = Mapping[str, Any]  # a number, or a column of them, one for each trial
Step = Callable[[Array, Array, State, int, Numbers, Layout], Any]

# What a number is where a formula does not look for it.
ELSE = {"lr": 0.1, "mu": 0.0, "damp": 0.0, "wd": 0.0, "k": 0.0, "s0": 0.0, "eps": 1e-8}


@dataclass(frozen=True)
class Formula:
    """One step of all elements, the numbers in it, and where to begin to look for them."""

    step: Step
    numbers: tuple[str, ...]
    starts: Callable[[Any], list[dict[str, float]]]
    rule: str = ""  # SGD or Adagrad; of a mistake, that of the nearest call
    traits: dict[str, Any] = field(default_factory=dict)
    cause: str = ""  # of a mistake
    nearest: Callable[[dict[str, float]], dict[str, Any]] | None = None


def rate(t: int, n: Numbers, schedule: str) -> Any:
    if schedule == "inverse":
        return n["lr"] / (1 + n["k"] * t)
    if schedule == "exponential":
        return n["lr"] * n["k"] ** t
    return n["lr"] / np.sqrt(t + 1) if schedule == "root" else n["lr"]


def sgd(form: str, nesterov: bool, decoupled: bool, schedule: str, clip: str) -> Step:
    def step(w: Array, g: Array, s: State, t: int, n: Numbers, lay: Layout) -> Any:
        lr, mu = rate(t, n, schedule), n["mu"]
        g = g if clip else lay.clipped(g, n)
        if decoupled:
            w = (1 - lr * n["wd"]) * w
        else:
            g = g + n["wd"] * w
        g = lay.clipped(g, n) if clip == "decayed" else g
        v = s.get("v", np.zeros_like(w))
        if form == "classic":
            s["v"] = v = mu * v - lr * g
            u = mu * v - lr * g if nesterov else v
        else:
            s["v"] = v = mu * v + (g if t == 0 else (1 - n["damp"]) * g)
            u = -lr * (g + mu * v if nesterov else v)
        return w + (-lay.clipped(-u, n) if clip == "update" else u)

    return step


def adagrad(placement: str, per: str, decoupled: bool, schedule: str, clip: str) -> Step:
    def step(w: Array, g: Array, s: State, t: int, n: Numbers, lay: Layout) -> Any:
        lr = rate(t, n, schedule)
        g = g if clip else lay.clipped(g, n)
        if decoupled:
            w = (1 - lr * n["wd"]) * w
        else:
            g = g + n["wd"] * w
        g = lay.clipped(g, n) if clip == "decayed" else g
        squares = lay.over_row(g * g) if per == "row" else g * g
        s["s"] = s.get("s", n["s0"]) + squares
        u = -lr * g / root(s["s"], n["eps"], placement)
        return w + (-lay.clipped(-u, n) if clip == "update" else u)

    return step


def root(s: Array, eps: Any, placement: str) -> Array:
    r: Array = np.sqrt(s + eps) if placement == "inside" else np.sqrt(s) + eps
    return r


SCHEDULES = ("", "inverse", "exponential", "root")


def rules(clip: str = "") -> list[Formula]:
    """Simple ones first: the first that fits is taken."""
    found = []
    for schedule in SCHEDULES:
        own = ("k",) if schedule in ("inverse", "exponential") else ()
        for wd in ((), ("wd",)):
            for momentum in ((), ("mu",), ("mu", "damp")):
                for nesterov in (False, True):
                    for form in ("heavy_ball", "classic"):
                        for decoupled in (False, True):
                            if (
                                (decoupled and not (wd and (momentum or schedule)))
                                or (nesterov and momentum != ("mu",))
                                or (form == "classic" and not (schedule and momentum == ("mu",)))
                                or (schedule and momentum == ("mu", "damp"))
                            ):
                                continue
                            traits = {
                                "form": form,
                                "nesterov": nesterov,
                                "decoupled": decoupled,
                                "schedule": schedule,
                            }
                            step = sgd(form, nesterov, decoupled, schedule, clip)
                            numbers = ("lr", *momentum, *wd, *own)
                            found.append(Formula(step, numbers, _linear, "SGD", traits))
    for per in ("element", "row"):
        for schedule in SCHEDULES[: 4 if per == "element" else 2]:
            own = ("k",) if schedule in ("inverse", "exponential") else ()
            for wd, decoupled in ((), False), (("wd",), False), (("wd",), True):
                for placement, s0 in ("inside", ()), ("outside", ()), ("outside", ("s0",)):
                    if s0 and schedule not in ("", "inverse"):
                        continue
                    traits = {
                        "eps_placement": placement,
                        "accumulator": per,
                        "decoupled": decoupled,
                        "schedule": schedule,
                    }
                    step = adagrad(placement, per, decoupled, schedule, clip)
                    numbers = ("lr", "eps", *s0, *wd, *own)
                    found.append(Formula(step, numbers, _rooted, "Adagrad", traits))
    return found


def _linear(hints: Any) -> list[dict[str, float]]:
    """From the answers to an impulse: see hints."""
    lr, mu = hints.response, hints.memory
    starts = []
    for factor in (1.0, 1 / (1 + mu) if mu > -0.9 else 1.0):
        decay = hints.decay / (lr * factor) if lr else 0.0
        start = {"lr": lr * factor, "mu": mu, "damp": hints.damp, "wd": decay}
        starts += [start | {"k": k} for k in (0.1, 0.9, 0.01)]
    return starts


def _rooted(hints: Any) -> list[dict[str, float]]:
    starts = []
    for lr, eps, s0 in hints.rooted:
        own = (hints.decay / lr, hints.decay / hints.faintest)
        for wd in (*own, 1e-4, 1e-3, 1e-2, 1e-1):
            starts += [{"lr": lr, "eps": eps, "s0": s0, "wd": wd, "k": k} for k in (0.1, 0.9, 0.01)]
    return starts


@dataclass
class Hints:
    """What the first answers say of the numbers, before anything is fitted."""

    response: float  # to an impulse at once, over it: lr
    memory: float  # the response of one step to that of the step before: mu
    damp: float  # how much less a later impulse does than the first
    decay: float  # what an element without gradient loses in the first step
    linear: bool  # whether twice the gradient does twice
    decays: bool | None  # whether an element without gradient moves; None where there is none
    faintest: float  # the response to the smallest gradient, over it
    rooted: list[tuple[float, float, float]]  # lr, eps, s0


def hints(x: Array, g: Array, roles: list[Any], eps: float) -> Hints:
    """From params and gradients, a row for each step."""
    change = np.diff(x, axis=0)

    def first(role: Any) -> int | None:
        return roles.index(role) if role in roles else None

    impulse, later, rest = first(0), first(2), first("rest")
    response, memory, damp, decay = 0.1, 0.0, 0.0, 0.0
    if impulse is not None and g[0, impulse]:
        answers = -change[:, impulse] / g[0, impulse]
        response = float(answers[0]) or 0.1
        memory = float(answers[2] / answers[1]) if abs(answers[1]) > 1e-7 * abs(response) else 0.0
        memory = memory if np.isfinite(memory) and abs(memory) < 1.5 else 0.5
        if later is not None:
            damp = 1 - float(-change[2, later] / g[2, later]) / response
    decays = None
    if rest is not None and np.isfinite(change[0, rest]):
        decay = -float(change[0, rest] / x[0, rest])
        decays = bool(change[:, rest].any())
    at = [i for i, w in enumerate(x[0]) if w == 0 and g[0, i] and change[0, i]]
    at = [i for i in at if np.isfinite(change[0, i])]
    ratio = np.abs(g[0, at] / change[0, at])
    linear = bool(len(at) and ratio.max() < (1 + 64 * eps) * ratio.min())
    sign = -np.sign(np.median(change[0, at] * g[0, at])) if at else 1.0
    rooted = [(0.01 * sign, 1e-8, 0.0), (0.1 * sign, 1e-6, 0.1)]
    faintest = float(1 / ratio[np.abs(g[0, at]).argmin()]) if at else 0.1
    if len(at) > 2 and not linear:
        size = np.abs(g[0, at])
        for power, s0 in (2, 0.0), (1, 0.0), (2, 0.1):
            A = np.column_stack([size**power, np.ones(len(at))])
            weight = 1 / ratio**power
            known = np.isfinite(weight) & (weight > 0)
            A = A[known] * weight[known, None]
            slope, level = np.linalg.lstsq(A, np.ones(len(A)), rcond=None)[0]
            if slope > 0:
                lr = slope ** (-1 / power)
                eps = max(level / slope, 1e-20)
                rooted.insert(0, (sign * lr, 1e-8 if s0 else eps, eps if s0 else 0.0))
    return Hints(response, memory, damp, decay, linear, decays, faintest, rooted)
