"""The peers: each makes its own copy of the work and the statement that does one step of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

import thalweg as tw
from thalweg._command import contenders as steps
from thalweg._command.contenders import EPS, LR, MOMENTUM, Step
from timing import Contender


@dataclass(frozen=True)
class Work:
    """Arrays of these sizes, stepped by "momentum" or "adagrad"."""

    rule: str
    sizes: tuple[int, ...]
    dtype: type = np.float32
    threads: int = 1
    idle: float = 0.0
    cold: bool = False

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
            "opt": steps.optimizer(work.rule, dict(zip(keys, params, strict=True))),
            "grads": dict(zip(keys, grads, strict=True)),
        }
    elif form == "bound":
        names = {"opt": steps.optimizer(work.rule, params, grads=grads)}
    else:
        names = {"opt": steps.optimizer(work.rule, params), "grads": grads}
    statement = "opt.step()" if form == "bound" else "opt.step(grads)"
    return Contender(statement, names, _threads(work), work.idle, work.cold)


@peer("function")
def function(work: Work) -> Contender:
    """sgd_ or adagrad_: of a lone array, or of lists."""
    params, grads = work.params(), work.grads()
    given: dict[str, Any] = {"w": params, "g": grads, "s": [np.zeros_like(w) for w in params]}
    if len(params) == 1:
        given = {name: arrays[0] for name, arrays in given.items()}
    names = given | {"sgd_": tw.sgd_, "adagrad_": tw.adagrad_, "lr": LR, "mu": MOMENTUM}
    if work.rule == "momentum":
        statement = "sgd_(w, g, s, lr=lr, momentum=mu)"
    else:
        statement = "adagrad_(w, g, s, lr=lr)"
    return Contender(statement, names, _threads(work), work.idle, work.cold)


@peer("limit")
def limit(work: Work) -> Contender:
    return _called(work, steps.limit(work.params(), work.grads()), _threads(work))


@peer("numpy naive")
def numpy_naive(work: Work) -> Contender:
    return _called(work, steps.numpy_naive(work.rule, work.params(), work.grads()))


@peer("numpy in place")
def numpy_in_place(work: Work) -> Contender:
    return _called(work, steps.numpy_in_place(work.rule, work.params(), work.grads()))


def _called(work: Work, step: Step, before: Callable[[], None] = lambda: None) -> Contender:
    return Contender("step()", {"step": step}, before, work.idle, work.cold)


@peer("numba", parallel=False)
@peer("numba parallel", parallel=True)
def numba(work: Work, parallel: bool) -> Contender:
    module = _import("numba")
    momentum, adagrad = _numba_kernels(parallel)
    kernel = momentum if work.rule == "momentum" else adagrad
    params, grads = work.params(), work.grads()
    state = [np.zeros(n, work.dtype) for n in work.sizes]

    def step() -> None:
        for w, g, s in zip(params, grads, state, strict=True):
            kernel(w, g, s, work.dtype(LR), work.dtype(MOMENTUM), work.dtype(EPS))

    return _called(work, step, partial(module.set_num_threads, work.threads))


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
    step = steps.torch(work.rule, work.params(), work.grads(), **options)
    return _called(work, step, partial(module.set_num_threads, work.threads))


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

    return Contender("step()", {"step": step}, idle=work.idle, cold=work.cold)


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
