"""One step of a rule as others do it, for the benches: the statements that thalweg replaces."""

from collections.abc import Callable
from typing import Any

import numpy as np

from thalweg import _core
from thalweg.optimizers import SGD, Adagrad

Arrays = list[np.ndarray[Any, Any]]
Step = Callable[[], object]

LR, MOMENTUM, EPS = 0.01, 0.9, 1e-10


def optimizer(rule: str, params: Any, **options: Any) -> SGD | Adagrad:
    """thalweg's, in the form that torch has."""
    if rule == "momentum":
        return SGD(params, LR, MOMENTUM, **options)
    return Adagrad(params, LR, eps=EPS, eps_placement="outside", **options)


def limit(params: Arrays, grads: Arrays) -> Step:
    """The loads and stores of a step (3 in, 2 out) without its arithmetic."""
    leaves = [(str(i), param, 0) for i, param in enumerate(params)]
    step: Step = _core.Optimizer(list(range(len(params))), leaves, [("limit", {})], grads).step
    return step


def numpy_naive(rule: str, params: Arrays, grads: Arrays) -> Step:
    """The two lines that people write."""
    state = [np.zeros_like(w) for w in params]

    def momentum() -> None:
        for w, g, v in zip(params, grads, state, strict=True):
            v[:] = MOMENTUM * v + g
            w += -LR * v

    def adagrad() -> None:
        for w, g, mem in zip(params, grads, state, strict=True):
            mem += g * g
            w += -LR * g / (np.sqrt(mem) + EPS)

    return momentum if rule == "momentum" else adagrad


def numpy_in_place(rule: str, params: Arrays, grads: Arrays) -> Step:
    """The same without temporaries."""
    state, scratch = ([np.zeros_like(w) for w in params] for _ in range(2))

    def momentum() -> None:
        for w, g, v, t in zip(params, grads, state, scratch, strict=True):
            np.multiply(v, MOMENTUM, out=v)
            np.add(v, g, out=v)
            np.multiply(v, LR, out=t)
            np.subtract(w, t, out=w)

    def adagrad() -> None:
        for w, g, mem, t in zip(params, grads, state, scratch, strict=True):
            np.multiply(g, g, out=t)
            np.add(mem, t, out=mem)
            np.sqrt(mem, out=t)
            np.add(t, EPS, out=t)
            np.divide(g, t, out=t)
            np.multiply(t, LR, out=t)
            np.subtract(w, t, out=w)

    return momentum if rule == "momentum" else adagrad


def torch(rule: str, arrays: Arrays, grads: Arrays, **options: Any) -> Step:
    """torch's own; ImportError where it is not installed."""
    import torch

    params = [torch.nn.Parameter(torch.from_numpy(w)) for w in arrays]
    for param, grad in zip(params, grads, strict=True):
        param.grad = torch.from_numpy(grad)
    opt: Any
    if rule == "momentum":
        opt = torch.optim.SGD(params, lr=LR, momentum=MOMENTUM, **options)
    else:
        opt = torch.optim.Adagrad(params, lr=LR, eps=EPS, **options)
    step: Step = opt.step
    return step
