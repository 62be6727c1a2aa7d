"""The rules as NumPy ufuncs: the law that the kernels keep, bit for bit.

Every operator is one rounding in the array's dtype, left to right as written. A scalar is computed
in float64 and rounded once, and has the array's dtype then, so that nothing is promoted.

``param`` and its state change in place. ``t`` counts the steps this array has taken before;
``clip`` is the factor that ``clip_factor`` gives for all arrays of the step.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

__all__ = [
    "BLOCK",
    "LANES",
    "adagrad",
    "average",
    "bounded",
    "by_rows",
    "clip_factor",
    "grad_norm",
    "overflown",
    "rank_sum",
    "row_means",
    "scaled",
    "sgd",
    "sum_of_squares",
    "summed_rows",
]

Array = np.ndarray[Any, Any]

# The tree of sums behind the norm: what an element is added to depends on nothing but its index.
BLOCK, LANES = 16_384, 32


@np.errstate(all="ignore")
def scaled(grad: Any, dtype: Any, scale: float = 1.0) -> Array:
    """g converted and scaled: what on_nonfinite judges."""
    g = np.asarray(grad).astype(dtype)
    return g if scale == 1.0 else np.dtype(dtype).type(scale) * g


def bounded(g: Array, max_value: float | None) -> Array:
    """g with every element between -max_value and max_value; a NaN stays."""
    if max_value is None:
        return g
    limit = g.dtype.type(max_value)
    return np.clip(g, -limit, limit)


@np.errstate(all="ignore")
def sum_of_squares(g: Array) -> np.float64:
    """In float64: lanes in order within a block, then in adjacent pairs, then blocks in order."""
    flat = np.ravel(g, order="C").astype(np.float64)
    count = -(-flat.size // BLOCK)
    squares = np.zeros(count * BLOCK)  # a 0 more changes no sum of squares
    squares[: flat.size] = flat * flat
    lanes = np.zeros((count, LANES))
    rows = squares.reshape(count, BLOCK // LANES, LANES)
    for i in range(BLOCK // LANES):
        lanes = lanes + rows[:, i]
    while lanes.shape[1] > 1:
        lanes = lanes[:, 0::2] + lanes[:, 1::2]
    total = np.float64(0.0)
    for block in lanes[:, 0]:
        total = total + block
    return total


@np.errstate(all="ignore")
def grad_norm(
    grads: Iterable[Any],
    dtypes: Iterable[Any],
    *,
    scale: float = 1.0,
    max_value: float | None = None,
) -> np.float64:
    """The global norm of a step's gradients, in the order of their params."""
    total = np.float64(0.0)
    for grad, dtype in zip(grads, dtypes, strict=True):
        total = total + sum_of_squares(bounded(scaled(grad, dtype, scale), max_value))
    norm: np.float64 = np.sqrt(total)
    return norm


@np.errstate(all="ignore")
def clip_factor(max_norm: float, norm: np.float64, norm_eps: float = 1e-6) -> np.float64:
    """What brings gradients of this norm down to max_norm; an infinite one only measures."""
    if max_norm == np.inf:
        return np.float64(1.0)
    return np.float64(max_norm) / (norm + norm_eps)


def _gradient(
    grad: Any, dtype: Any, scale: float, max_value: float | None, clip: float, maximize: bool
) -> Array:
    """g as the rule receives it: converted, scaled, bounded, clipped, turned uphill."""
    g = bounded(scaled(grad, dtype, scale), max_value)
    if not clip >= 1.0:  # a NaN, too, is multiplied
        g = dtype.type(clip) * g
    if maximize:
        g = -g
    return g


@np.errstate(all="ignore")
def overflown(
    grad: Any,
    dtype: Any,
    *,
    scale: float = 1.0,
    max_value: float | None = None,
    clip: float = 1.0,
    per: str = "element",
) -> Array:
    """Where Adagrad's squares of a gradient, or its rows' means, are no finite numbers."""
    g = _gradient(grad, np.dtype(dtype), scale, max_value, clip, False)
    squares: Array = ~np.isfinite(g * g if per == "element" else row_means(g))
    return squares


def _decay(
    w: Array, g: Array, rate: float, weight_decay: float, decoupled: bool
) -> tuple[Array, Array]:
    """Shrink the weights, through the gradient (coupled) or past it; ``rate`` is lr or clr."""
    scalar = w.dtype.type
    if weight_decay == 0.0:
        return w, g
    if decoupled:
        return scalar(1.0 - rate * weight_decay) * w, g
    return w, g + scalar(weight_decay) * w


@np.errstate(all="ignore")
def sgd(
    param: Array,
    grad: Any,
    velocity: Array | None,
    t: int,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    form: str = "heavy_ball",
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    scale: float = 1.0,
    max_value: float | None = None,
    clip: float = 1.0,
) -> None:
    """SGD: minibatch gradient descent where ``velocity`` is None, else momentum in three forms."""
    scalar = param.dtype.type
    eta, mu = scalar(lr), scalar(momentum)
    g = _gradient(grad, param.dtype, scale, max_value, clip, maximize)
    w, g = _decay(param, g, lr, weight_decay, decoupled)

    if velocity is None:
        param[...] = w - eta * g
        return

    v = velocity
    if form == "heavy_ball":
        damped = t > 0 and dampening != 0.0
        v[...] = mu * v + (scalar(1.0 - dampening) * g if damped else g)
    elif form == "classic":
        v[...] = mu * v - eta * g
    elif form == "ema":
        v[...] = mu * v + scalar(1.0 - momentum) * g
    v[np.abs(v) < np.finfo(v.dtype).tiny] = 0.0

    if form == "classic":
        u = mu * v - eta * g if nesterov else v
        param[...] = w + u
    else:
        u = g + mu * v if nesterov else v
        param[...] = w - eta * u


@np.errstate(all="ignore")
def adagrad(
    param: Array,
    grad: Any,
    accumulator: Array,
    t: int,
    *,
    lr: float,
    eps: float = 1e-8,
    eps_placement: str = "inside",
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    scale: float = 1.0,
    max_value: float | None = None,
    clip: float = 1.0,
    per: str = "element",
) -> None:
    """Adagrad: every element divides its rate by the root of its own squared gradients, or by that
    of its row's mean ones; then the accumulator has one element a row."""
    scalar = param.dtype.type
    clr = lr / (1.0 + t * lr_decay)
    g = _gradient(grad, param.dtype, scale, max_value, clip, maximize)
    w, g = _decay(param, g, clr, weight_decay, decoupled)

    s = accumulator
    s[...] = s + (g * g if per == "element" else row_means(g))
    if per == "row":
        s = s.reshape(s.shape + (1,) * (g.ndim - s.ndim))
    r = np.sqrt(s + scalar(eps)) if eps_placement == "inside" else np.sqrt(s) + scalar(eps)
    param[...] = w - (scalar(clr) * g) / r


@np.errstate(all="ignore")
def average(a: Array, param: Array, t: int, *, weight_average: float) -> None:
    """The average takes in the weights that a step has left; ``t`` counts the steps it has taken
    before, and in the first one it is the weights."""
    scalar = param.dtype.type
    beta, rest = scalar(weight_average), scalar(1.0 - weight_average)
    a[...] = param if t == 0 else beta * a + rest * param


@np.errstate(all="ignore")
def row_means(g: Array) -> Array:
    """The mean square of each row, in float64 and in 8 lanes; rounded once to g's dtype."""
    shape = g.shape[:1]
    size = int(np.prod(g.shape[1:]))
    if size == 0:  # nothing to be the mean of, and nothing to divide
        return np.zeros(shape, g.dtype)
    squares = np.zeros((int(np.prod(shape)), -(-size // 8) * 8))  # a 0 more changes no sum
    squares[:, :size] = g.reshape(len(squares), size).astype(np.float64) ** 2
    lane = np.zeros((8, len(squares)))
    for i in range(0, squares.shape[1], 8):
        lane = lane + squares[:, i : i + 8].T
    low, high = (lane[0] + lane[1]) + (lane[2] + lane[3]), (lane[4] + lane[5]) + (lane[6] + lane[7])
    means: Array = ((low + high) / size).astype(g.dtype).reshape(shape)
    return means


@np.errstate(all="ignore")
def summed_rows(rows: Iterable[Any], values: Any, dtype: Any) -> tuple[Array, Array]:
    """The distinct rows in ascending order, and their gradients: summed in order of appearance,
    from the first one on, in the param's dtype."""
    values = np.asarray(values).astype(dtype)
    distinct = sorted({int(row) for row in rows})
    index = {row: k for k, row in enumerate(distinct)}
    sums = np.zeros((len(distinct), *values.shape[1:]), dtype)
    seen = set()
    for row, value in zip(rows, values, strict=True):
        k = index[int(row)]
        sums[k] = sums[k] + value if k in seen else value
        seen.add(k)
    return np.array(distinct, np.intp), sums


def by_rows(
    rule: Callable[..., None],
    param: Array,
    rows: Iterable[Any],
    values: Any,
    state: Array | None,
    t: int,
    **options: Any,
) -> None:
    """One step of ``rule`` with a RowGrad: one update of each distinct row and its state."""
    distinct, sums = summed_rows(rows, values, param.dtype)
    w = param[distinct]
    s = None if state is None else state[distinct]
    rule(w, sums, s, t, **options)
    param[distinct] = w
    if state is not None:
        state[distinct] = s


@np.errstate(all="ignore")
def rank_sum(grads: Iterable[Any], dtype: Any) -> Array:
    """((g0 + g1) + g2) + ... over the ranks, each converted first: what ``thalweg.mpi`` steps by,
    with ``scale`` and 1/N as one factor."""
    first, *others = (scaled(grad, dtype) for grad in grads)
    for grad in others:
        first = first + grad
    return first
