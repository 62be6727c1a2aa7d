"""The same formulas in another order of operations, as people write them; in the array's dtype."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from thalweg._identify.call import Call
from thalweg._identify.probe import LARGE, SMALL, Array, Record

Step = Callable[[Array, Array, dict[str, Array], int, Any], Any]

KNOWN = {"lr", "momentum", "form", "nesterov", "eps", "eps_placement", "weight_decay", "decoupled"}


def _root(s: Array, o: Any) -> Any:
    return np.sqrt(s + o.eps) if o.inside else np.sqrt(s) + o.eps


def _summed(g: Array, s: dict[str, Array], o: Any) -> Any:
    s["s"] = o.kept(s.get("s", np.zeros_like(g)) + g * g)
    return s["s"]


def _quotient_first(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    return w - o.lr * (g / _root(_summed(g, s, o), o))


def _rate_first(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    return w - (o.lr / _root(_summed(g, s, o), o)) * g


def _quotient_last(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    return w - o.lr * g / _root(_summed(g, s, o), o)


def _reciprocal(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    return w - o.lr * g * (o.one / _root(_summed(g, s, o), o))


def _ones_first(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    return w - o.lr * (g * (o.one / _root(_summed(g, s, o), o)))


def _velocity(g: Array, s: dict[str, Array], o: Any) -> tuple[Array, Array]:
    old = s.get("v", np.zeros_like(g))
    if o.form == "classic":
        s["v"] = o.kept(o.mu * old - o.lr * g)
    elif o.form == "ema":
        s["v"] = o.kept(o.mu * old + o.rest * g)
    else:
        s["v"] = o.kept(o.mu * old + g)
    return old, s["v"]


def _cs231n(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    old, v = _velocity(g, s, o)
    return w + (-o.mu * old + (o.one + o.mu) * v)


def _two_terms(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    _, v = _velocity(g, s, o)
    if o.form == "classic":
        return w + o.mu * v - o.lr * g
    return w - o.lr * g - o.lr * o.mu * v


def _difference(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    before = s.get("w", w)
    s["w"] = w.copy()
    return w - o.lr * g + o.mu * (w - before)


def _moved(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    """An average as v + (1 - mu)*(g - v)."""
    old = s.get("v", np.zeros_like(g))
    s["v"] = old + o.rest * (g - old)
    return w - o.lr * s["v"]


def _plain(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    if o.mu is None:
        return w - o.lr * g
    _, v = _velocity(g, s, o)
    u = v
    if o.nesterov:
        u = o.mu * v - o.lr * g if o.form == "classic" else g + o.mu * v
    return w + u if o.form == "classic" else w - o.lr * u


def _subtracted(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    return _plain(w - (o.lr * o.wd) * w, g, s, t, o)


def _subtracted_in_order(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    return _plain(w - o.lr * (o.wd * w), g, s, t, o)


def _two_decays(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    return w - o.lr * g - o.lr * o.wd * w


def _spellings(call: Call) -> Iterator[tuple[str, Step]]:
    has = call.options
    if call.rule == "Adagrad" and "weight_decay" not in has:
        yield "it computes lr*(g/r), which is (lr*g)/r here", _quotient_first
        yield "it computes (lr/r)*g, which is (lr*g)/r here", _rate_first
        yield "it multiplies by 1/r instead of dividing by r", _reciprocal
        yield "it multiplies by 1/r instead of dividing by r", _ones_first
    if call.rule == "SGD" and has.get("weight_decay"):
        yield "it subtracts lr*wd*w, which is a product with 1 - lr*wd here", _subtracted
        yield "it subtracts lr*(wd*w), which is a product with 1 - lr*wd here", _subtracted_in_order
        if "momentum" not in has:
            yield "it subtracts lr*g and lr*wd*w one after the other", _two_decays
    elif call.rule == "SGD" and "momentum" in has:
        if has.get("nesterov"):
            yield "it adds -mu*v_old + (1 + mu)*v, as CS231n does, for mu*v - lr*g", _cs231n
            yield "it adds the look ahead in two terms, each by itself", _two_terms
        else:
            yield "it takes the velocity from the difference of two weights", _difference
            yield "it moves the average by (1 - mu)*(g - v)", _moved


class _Numbers:
    """Options as scalars of a dtype; ``kept`` is what becomes of a state that is stored."""

    def __init__(self, call: Call, dtype: Any, kept: Callable[[Array], Array]) -> None:
        self.kept = kept
        has = call.options
        self.is_sgd = call.rule == "SGD"
        number = np.dtype(dtype).type
        self.one = number(1.0)
        self.lr, self.eps = number(has["lr"]), number(has.get("eps", 1e-8))
        self.inside = has.get("eps_placement", "inside") == "inside"
        self.mu = number(has["momentum"]) if "momentum" in has else None
        self.rest = number(1.0 - has.get("momentum", 0.0))
        self.wd = number(has.get("weight_decay", 0.0))
        self.form = has.get("form", "heavy_ball")
        self.nesterov = has.get("nesterov", False)


def spelled(call: Call, record: Record) -> str:
    """How the update that comes near a call is written, if one of these has its bits."""
    if not call.options.keys() <= KNOWN or callable(call.options["lr"]):
        return ""
    for text, step in _spellings(call):
        if all(_matches(step, call, record, i) for i in range(len(record.shapes))):
            return text
    if record.dtypes[0] == np.float32:
        for kept in _same, _as_float32:
            count = range(len(record.shapes))
            if all(_matches(_computed, call, record, i, np.float64, kept) for i in count):
                return "it computes in float64, which a number that is no Python float brings about"
    return ""


def _same(array: Array) -> Array:
    return array


def _as_float32(array: Array) -> Array:
    return array.astype(np.float32).astype(np.float64)


def _computed(w: Array, g: Array, s: dict[str, Array], t: int, o: Any) -> Any:
    step = _plain if o.is_sgd else _quotient_last
    return _as_float32(step(w, g, s, t, o))


@np.errstate(all="ignore")
def _matches(
    step: Step,
    call: Call,
    record: Record,
    i: int,
    dtype: Any = None,
    kept: Callable[[Array], Array] = _same,
) -> bool:
    kind = dtype or record.dtypes[i]
    numbers, state = _Numbers(call, kind, kept), {}  # type: ignore[var-annotated]
    w = record.params[0][i].astype(kind)
    for t in range(SMALL + LARGE):
        w = step(w, record.grads[t][i].astype(kind), state, t, numbers)
        if w.astype(record.dtypes[i]).tobytes() != record.params[t + 1][i].tobytes():
            return False
    return True
