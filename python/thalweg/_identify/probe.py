"""The gradients that an update is asked about, and what it has answered."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any

import numpy as np

from thalweg import _core
from thalweg._optimizer.tree import Flat, fill

Array = np.ndarray[Any, Any]

# Small gradients, which no clipping touches; gradients that double; those after a change of rate.
SMALL, LARGE, AFTER = 14, 22, 8
STEPS = SMALL + LARGE + AFTER
LEAST = 8  # elements, for the roles to be played

RATES = ("lr", "learning_rate", "eta", "step_size")

# Roles of the elements, again and again: an impulse at a step, no gradient at all ("rest"), random
# numbers, or a magnitude that stays, as a power of 2.
ROLES = (0, "rest", -10, "random", -16, 2, -22, "random", -13, -27, "near", -19)


@dataclass
class Record:
    """What was asked and what came of it: by step, and by array in the order of the params."""

    shapes: list[tuple[int, ...]]
    dtypes: list[Any]
    grads: list[list[Array]]
    params: list[list[Array]]
    roles: list[Any]
    rate: float | None = None  # what the rate was set to before the last steps
    notes: list[str] = field(default_factory=list)

    @property
    def eps(self) -> float:
        return max(float(np.finfo(dtype).eps) for dtype in self.dtypes)

    def flat(self, arrays: list[Array]) -> Array:
        return np.concatenate([np.ravel(array).astype(np.float64) for array in arrays])


def planned(shapes: list[tuple[int, ...]], dtypes: list[Any]) -> Record:
    """Params and gradients before the update is asked; the same at every call."""
    random = np.random.default_rng(11_7)
    sizes = [int(np.prod(shape)) for shape in shapes]
    count = sum(sizes)
    roles = [ROLES[i % len(ROLES)] for i in range(count)]
    # A mantissa of its own for each, because a power of 2 rounds nothing.
    start = np.array([_start(role, random) for role in roles])
    sign = np.where(random.random(count) < 0.5, -1.0, 1.0)
    share = 0.5 ** random.integers(0, 4, count)
    of_array = np.repeat([0.5 ** (i % 3) for i in range(len(sizes))], sizes)
    steps = []
    for t in range(STEPS):
        mantissa = random.uniform(1, 2, count)
        if t < SMALL:
            g = sign * [_small(role, t, x, random) for role, x in zip(roles, mantissa, strict=True)]
        else:
            height = min(t, SMALL + LARGE) - SMALL - 7
            turn = np.where(random.random(count) < 0.3, -1.0, 1.0)
            g = sign * turn * mantissa * share * of_array * 2.0**height
            g[[role == "rest" for role in roles]] = 0.0
        steps.append(g)
    ends = np.cumsum(sizes)[:-1]

    def cut(flat: Array) -> list[Array]:
        parts = zip(np.split(flat, ends), shapes, dtypes, strict=True)
        return [part.reshape(shape).astype(dtype) for part, shape, dtype in parts]

    return Record(shapes, dtypes, [cut(g) for g in steps], [cut(start)], roles)


def _start(role: Any, random: np.random.Generator) -> float:
    if role == "rest":
        return float(random.uniform(0.5, 1))
    return float(random.uniform(-1, 1)) if role == "near" else 0.0


def _small(role: Any, t: int, mantissa: float, random: np.random.Generator) -> float:
    if role == "rest":
        return 0.0
    if role in ("random", "near"):
        return float(random.uniform(-1, 1)) * 2.0**-10
    if role in (0, 2):
        return 2.0**-9 if t == role else 0.0
    return mantissa * 2.0 ** int(role)


def leaves(given: Any, like: Any, path: str = "params") -> Iterator[Array]:
    """The arrays of ``given``, which has the structure ``like``."""
    if isinstance(like, (Mapping, list, tuple)):
        if isinstance(like, Mapping):
            fits = isinstance(given, Mapping) and set(given) == set(like)
        else:
            fits = isinstance(given, (list, tuple)) and len(given) == len(like)
        if not fits:
            raise TypeError(
                f"update: expected None or {path} back, in the structure it was given, received "
                f"{type(given).__name__}; hand in lambda params, grads: ... that returns only them"
            )
        keys = like if isinstance(like, Mapping) else range(len(like))
        for key in keys:
            yield from leaves(given[key], like[key], f"{path}[{key!r}]")
        return
    array = np.asarray(given)
    if array.shape != like.shape:
        raise ValueError(
            f"update: expected {path} of shape {like.shape} back, received shape {array.shape}"
        )
    if array.dtype != like.dtype:
        raise TypeError(
            f"update: expected {path} of {like.dtype} back, received {array.dtype}; hand in params "
            "of the dtype that it computes in"
        )
    yield array


@dataclass
class Caller:
    """How an update is called, and how its rate is set."""

    call: Callable[..., Any]
    takes: tuple[str, ...]
    set_lr: Callable[[float], Any] | None
    before: float | None = None  # the rate as the update has it, where that can be seen

    def __call__(self, params: Any, grads: Any) -> Any:
        return self.call(*({"params": params, "grads": grads}[name] for name in self.takes))


def caller(update: Any, set_lr: Callable[[float], Any] | None) -> Caller:
    """TypeError where there is nothing to call."""
    call = update
    if not inspect.isroutine(update):
        names = [name for name in ("step", "update", "update_params") if hasattr(update, name)]
        if names:
            call = getattr(update, names[0])
    if not callable(call):
        raise TypeError(
            "update: expected a function of (params, grads), or an object with step or update, "
            f"received {type(update).__name__}"
        )
    takes: tuple[str, ...]
    keyword = before = None
    if isinstance(update, (_core.Optimizer, _core.Joint)):
        takes = ("grads",)
    else:
        takes, keyword = _signature(call)
    if set_lr is None and keyword is not None:
        rates: dict[str, float] = {}
        function: Callable[..., Any] = call
        call = lambda *args: function(*args, **rates)  # noqa: E731

        def set_lr(rate: float) -> None:
            rates[keyword[0]] = rate

        before = keyword[1]
    elif set_lr is None and call is not update:
        for name in RATES:
            now = getattr(update, name, None)
            if isinstance(now, Real) and not isinstance(now, bool):
                return Caller(call, takes, partial(setattr, update, name), float(now))
    return Caller(call, takes, set_lr, before)


def _signature(call: Callable[..., Any]) -> tuple[tuple[str, ...], tuple[str, float] | None]:
    try:
        parameters = [*inspect.signature(call).parameters.values()]
    except (TypeError, ValueError):
        return ("params", "grads"), None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in positional if p.default is p.empty]
    keyword = [
        (p.name, float(p.default))
        for p in parameters
        if p.name in RATES and isinstance(p.default, Real) and not isinstance(p.default, bool)
    ]
    rate = keyword[0] if keyword else None
    if len(needed) > 2:
        raise TypeError(
            f"update: expected a function of (params, grads), received one of ({', '.join(needed)})"
            f"; hand in lambda params, grads: update(...) with the others filled in"
        )
    if len(needed) == 1 and needed[0].startswith("g"):
        return ("grads",), rate
    if len(needed) == 2 and needed[0].startswith("g"):
        return ("grads", "params"), rate
    return ("params", "grads"), rate


def ask(update: Caller, params: Any) -> Record:
    """Run the update on params of this structure, all steps."""
    flat = Flat()
    tree = flat.add(params)
    given = [*flat.leaves.values()]
    for name, array in flat.leaves.items():
        if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
            raise TypeError(
                f"params[{name!r}]: expected an array of float32 or float64, received "
                f"{getattr(array, 'dtype', type(array).__name__)}"
            )
    record = planned([array.shape for array in given], [array.dtype for array in given])
    if sum(array.size for array in given) < LEAST:
        raise ValueError(
            f"params: expected at least {LEAST} elements, to tell them apart by what they do, "
            f"received {sum(array.size for array in given)}"
        )
    if "params" in update.takes:
        return _run(update, fill(tree, [np.array(x) for x in record.params[0]]), tree, record)
    # The update holds them: they are these, and get their values back.
    kept = [array.copy() for array in given]
    try:
        for array, value in zip(given, record.params[0], strict=True):
            array[...] = value
        return _run(update, params, tree, record)
    finally:
        for array, value in zip(given, kept, strict=True):
            array[...] = value


def _run(update: Caller, container: Any, tree: Any, record: Record) -> Record:
    changed = False
    with np.errstate(all="ignore"):  # divisions by 0 are found in what comes of them
        for t, grads in enumerate(record.grads):
            if t == SMALL + LARGE and update.set_lr is not None:
                # Another than before, and no power of 2 of it.
                record.rate = 0.0375
                update.set_lr(record.rate)
            given = [np.array(g) for g in grads]
            like = fill(tree, record.params[0])
            returned = update(container, fill(tree, given))
            changed |= any(a.tobytes() != b.tobytes() for a, b in zip(given, grads, strict=True))
            held = [*leaves(container, like)]
            if returned is not None and returned is not container and _is_params(returned, like):
                for mine, array in zip(held, leaves(returned, like), strict=True):
                    mine[...] = array
            record.params.append([array.copy() for array in held])
    if changed:
        record.notes.append("it writes into the gradients it is given; thalweg only reads them")
    return record


def _is_params(returned: Any, like: Any) -> bool:
    """Numbers, words and flags that a step reports are no params."""
    return not isinstance(returned, (Real, str)) or isinstance(like, Real)
