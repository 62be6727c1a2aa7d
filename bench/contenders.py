"""The peers: each makes its own copy of the work and the statement that does one step of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

import thalweg as tw
from thalweg import _core
from timing import Contender

LR, MOMENTUM, EPS = 0.01, 0.9, 1e-10


@dataclass(frozen=True)
class Work:
    """Arrays of these sizes, stepped by "momentum" or "adagrad"."""

    rule: str
    sizes: tuple[int, ...]
    dtype: type = np.float32
    threads: int = 1
    idle: float = 0.0

    def params(self) -> list[np.ndarray]:
        return [np.full(n, 1.0, self.dtype) for n in self.sizes]

    def grads(self) -> list[np.ndarray]:
        """The same buffers for every contender."""
        return grads_of(self.sizes, self.dtype)


@cache
def grads_of(sizes: tuple[int, ...], dtype: type) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(n, np.float32).astype(dtype) * dtype(1e-3) for n in sizes]


class Missing(Exception):
    """The peer is not installed."""


Maker = Callable[[Work], Contender]
MAKERS: dict[str, Maker] = {}


def peer(
    name: str, **options: Any
) -> Callable[[Callable[..., Contender]], Callable[..., Contender]]:
    def register(make: Callable[..., Contender]) -> Callable[..., Contender]:
        MAKERS[name] = partial(make, **options)
        return make

    return register


def _optimizer(work: Work, params: Any, **kwargs: Any) -> Any:
    if work.rule == "momentum":
        return tw.SGD(params, LR, MOMENTUM, **kwargs)
    return tw.Adagrad(params, LR, eps=EPS, eps_placement="outside", **kwargs)


def _threads(work: Work) -> Callable[[], None]:
    return partial(tw.set_num_threads, work.threads)


@peer("thalweg", form="list")
@peer("thalweg dict", form="dict")
@peer("thalweg bound", form="bound")
def thalweg(work: Work, form: str) -> Contender:
    params, grads = work.params(), work.grads()
    names: dict[str, Any]
    if form == "dict":
        keys = [f"layer{i}" for i in range(len(params))]
        names = {
            "opt": _optimizer(work, dict(zip(keys, params, strict=True))),
            "grads": dict(zip(keys, grads, strict=True)),
        }
    elif form == "bound":
        names = {"opt": _optimizer(work, params, grads=grads)}
    else:
        names = {"opt": _optimizer(work, params), "grads": grads}
    statement = "opt.step()" if form == "bound" else "opt.step(grads)"
    return Contender(statement, names, _threads(work), work.idle)


@peer("limit")
def limit(work: Work) -> Contender:
    """The loads and stores of the step (3 in, 2 out) without its arithmetic."""
    params = work.params()
    leaves = [(str(i), param, 0) for i, param in enumerate(params)]
    opt = _core.Optimizer(list(range(len(params))), leaves, [("limit", {})], work.grads())
    return Contender("opt.step()", {"opt": opt}, _threads(work), work.idle)


def _state(work: Work) -> list[np.ndarray]:
    return [np.zeros(n, work.dtype) for n in work.sizes]


@peer("numpy naive")
def numpy_naive(work: Work) -> Contender:
    def momentum(params: Any, grads: Any, state: Any) -> None:
        for w, g, v in zip(params, grads, state, strict=True):
            v[:] = MOMENTUM * v + g
            w += -LR * v

    def adagrad(params: Any, grads: Any, state: Any) -> None:
        for w, g, mem in zip(params, grads, state, strict=True):
            mem += g * g
            w += -LR * g / (np.sqrt(mem) + EPS)

    return _numpy(work, momentum if work.rule == "momentum" else adagrad)


@peer("numpy in place")
def numpy_in_place(work: Work) -> Contender:
    scratch = [np.empty(n, work.dtype) for n in work.sizes]

    def momentum(params: Any, grads: Any, state: Any) -> None:
        for w, g, v, t in zip(params, grads, state, scratch, strict=True):
            np.multiply(v, MOMENTUM, out=v)
            np.add(v, g, out=v)
            np.multiply(v, LR, out=t)
            np.subtract(w, t, out=w)

    def adagrad(params: Any, grads: Any, state: Any) -> None:
        for w, g, mem, t in zip(params, grads, state, scratch, strict=True):
            np.multiply(g, g, out=t)
            np.add(mem, t, out=mem)
            np.sqrt(mem, out=t)
            np.add(t, EPS, out=t)
            np.divide(g, t, out=t)
            np.multiply(t, LR, out=t)
            np.subtract(w, t, out=w)

    return _numpy(work, momentum if work.rule == "momentum" else adagrad)


def _numpy(work: Work, step: Callable[..., None]) -> Contender:
    names = {"step": step, "params": work.params(), "grads": work.grads(), "state": _state(work)}
    return Contender("step(params, grads, state)", names, idle=work.idle)


@peer("numba", parallel=False)
@peer("numba parallel", parallel=True)
def numba(work: Work, parallel: bool) -> Contender:
    module = _import("numba")
    momentum, adagrad = _numba_kernels(parallel)
    kernel = momentum if work.rule == "momentum" else adagrad

    def step(params: Any, grads: Any, state: Any) -> None:
        for w, g, s in zip(params, grads, state, strict=True):
            kernel(w, g, s, work.dtype(LR), work.dtype(MOMENTUM), work.dtype(EPS))

    contender = _numpy(work, step)
    contender.before = partial(module.set_num_threads, work.threads)
    return contender


@cache
def _numba_kernels(parallel: bool) -> Sequence[Any]:
    module = _import("numba")

    def momentum(w, g, v, lr, mu, eps):  # type: ignore[no-untyped-def]
        for i in module.prange(w.size):
            v[i] = mu * v[i] + g[i]
            w[i] -= lr * v[i]

    def adagrad(w, g, s, lr, mu, eps):  # type: ignore[no-untyped-def]
        for i in module.prange(w.size):
            s[i] += g[i] * g[i]
            w[i] -= lr * g[i] / (np.sqrt(s[i]) + eps)

    return tuple(
        module.njit(parallel=parallel, error_model="numpy")(f) for f in (momentum, adagrad)
    )


@peer("torch single", options={"foreach": False, "fused": False})
@peer("torch foreach", options={"foreach": True})
@peer("torch fused", options={"fused": True})
def torch(work: Work, options: dict[str, bool]) -> Contender:
    module = _import("torch")
    params = [module.nn.Parameter(module.from_numpy(w)) for w in work.params()]
    for param, grad in zip(params, work.grads(), strict=True):
        param.grad = module.from_numpy(grad)
    if work.rule == "momentum":
        opt = module.optim.SGD(params, lr=LR, momentum=MOMENTUM, **options)
    else:
        opt = module.optim.Adagrad(params, lr=LR, eps=EPS, **options)
    before = partial(module.set_num_threads, work.threads)
    return Contender("opt.step()", {"opt": opt}, before, work.idle)


@peer("optax jit")
def optax(work: Work) -> Contender:
    module, jax = _import("optax"), _import("jax")
    if work.dtype is np.float64:
        jax.config.update("jax_enable_x64", True)
    if work.rule == "momentum":
        rule = module.sgd(LR, MOMENTUM)
    else:
        rule = module.adagrad(LR, eps=EPS, initial_accumulator_value=0.0)

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = rule.update(grads, state, params)
        return module.apply_updates(params, updates), state

    jitted = jax.jit(update, donate_argnums=(0, 1))
    params = [jax.numpy.asarray(w) for w in work.params()]
    holder = {"params": params, "state": rule.init(params)}
    grads = [jax.numpy.asarray(g) for g in work.grads()]

    def step() -> None:
        holder["params"], holder["state"] = jitted(holder["params"], holder["state"], grads)
        jax.block_until_ready(holder["params"])

    return Contender("step()", {"step": step}, idle=work.idle)


def _import(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise Missing(name) from None


def make(names: Sequence[str], work: Work, skipped: set[str]) -> dict[str, Contender]:
    """The contenders of these names; those that are not installed are added to ``skipped``."""
    made = {}
    for name in names:
        try:
            made[name] = MAKERS[name](work)
        except Missing as missing:
            skipped.add(f"{name} (no {missing})")
    return made
