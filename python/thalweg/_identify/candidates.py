"""The calls that a formula with its numbers may be: which of them, the bits tell."""

import math
from collections.abc import Iterator
from typing import Any

from thalweg import schedules
from thalweg._identify.call import Call
from thalweg._identify.fit import rounded

# Where a sum of eps and the initial accumulator is found, one of these may be the eps.
USUAL_EPS = (1e-7, 1e-8, 1e-10, 1e-6, 1e-12)
LIMITS = ("max_value", "max_norm", "max_array_norm")


def wrong(numbers: dict[str, float]) -> str:
    """What keeps these numbers from being those of a call; nothing if they are."""
    sign = -1.0 if numbers["lr"] < 0 else 1.0
    if numbers.get("wd", 0.0) * sign < 0:
        return "the decay has the wrong sign: weights grow"
    if numbers.get("mu", 0.0) < 0:
        return "the velocity is taken with the wrong sign: it turns at every step"
    if numbers.get("mu", 0.0) > 1:
        return "the velocity is multiplied by more than 1, and grows"
    if numbers.get("damp", 0.0) < 0:
        return "the first step is damped: its gradient counts less than the later ones"
    return ""


def calls(
    rule: str, traits: dict[str, Any], numbers: dict[str, float], eps: float
) -> Iterator[Call]:
    """In the order in which they are preferred where they are the same."""
    common: dict[str, Any] = {}
    if numbers["lr"] < 0:
        common["maximize"] = True
    common |= {name: numbers[name] for name in LIMITS if name in numbers}
    if "max_norm" in common or "max_array_norm" in common:
        near = max(numbers.get("norm_eps", 0.0), 0.0)
        common |= {} if near == 1e-6 else {"norm_eps": near}
    decay = abs(numbers.get("wd", 0.0))
    ways = [bool(traits["decoupled"])]
    if rule == "SGD" and decay and "mu" not in numbers and not traits["schedule"]:
        ways = [False, True]  # the same but for rounding
    for decoupled in ways if decay else [False]:
        options = common.copy()
        if decay:
            options["weight_decay"] = decay
        if decoupled:
            options["decoupled"] = True
        if rule == "SGD":
            yield from _sgd(traits, numbers, options, eps)
        else:
            yield from _adagrad(traits, numbers, options, eps)


def _rate(lr: float, traits: dict[str, Any], numbers: dict[str, float]) -> Any:
    kind, k = traits["schedule"], numbers.get("k", 0.0)
    if kind == "inverse":
        return schedules.InverseTime(lr, max(k, 0.0))
    if kind == "exponential":
        return schedules.Exponential(lr, k)
    return schedules.InverseSqrt(lr) if kind == "root" else lr


def _sgd(
    traits: dict[str, Any], numbers: dict[str, float], options: dict[str, Any], eps: float
) -> Iterator[Call]:
    lr, mu = abs(numbers["lr"]), numbers.get("mu", 0.0)
    first = {"lr": _rate(lr, traits, numbers)}
    if "mu" not in numbers:
        yield Call("SGD", first | options)
        return
    first["momentum"] = mu
    if traits["nesterov"]:
        options = {"nesterov": True} | options
    if numbers.get("damp", 0.0):
        yield Call("SGD", first | {"dampening": numbers["damp"]} | options)
        return
    either = not traits["schedule"]
    if either or traits["form"] == "heavy_ball":
        yield Call("SGD", first | options)
    if either or traits["form"] == "classic":
        yield Call("SGD", first | {"form": "classic"} | options)
    if (either or traits["form"] == "heavy_ball") and not traits["nesterov"] and mu < 1:
        average = _rate(rounded(lr / (1 - mu), 0.0, 16 * eps), traits, numbers)
        yield Call("SGD", {"lr": average, "momentum": mu, "form": "ema"} | options)


def _adagrad(
    traits: dict[str, Any], numbers: dict[str, float], options: dict[str, Any], eps: float
) -> Iterator[Call]:
    lr = abs(numbers["lr"])
    if traits["schedule"] == "inverse":
        given = {"lr": lr, "lr_decay": max(numbers["k"], 0.0)}
    else:
        given = {"lr": _rate(lr, traits, numbers)}
    if traits["accumulator"] == "row":
        options = {"accumulator": "row"} | options
    total = numbers["eps"]
    if traits["eps_placement"] == "outside":
        s0 = numbers.get("s0", 0.0)
        start = {"initial_accumulator_value": s0} if s0 else {}
        yield Call("Adagrad", given | {"eps": total, "eps_placement": "outside"} | start | options)
        return
    yield Call("Adagrad", given | {"eps": total} | options)
    doubt = 2 * math.sqrt(eps)
    for near in USUAL_EPS:
        s0 = rounded(total - near, 0.0, doubt)
        if s0 >= 100 * near and math.isclose(s0 + near, total, rel_tol=doubt):
            both = {"eps": near, "initial_accumulator_value": s0}
            yield Call("Adagrad", given | both | options)
