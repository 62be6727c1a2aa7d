"""``python -m thalweg selftest``: the bits of every rule at every ISA level of this machine."""

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from thalweg import _core, _reference
from thalweg.optimizers import SGD, Adagrad
from thalweg.rows import RowGrad

Array = np.ndarray[Any, Any]

RULES: list[tuple[type[SGD] | type[Adagrad], dict[str, Any]]] = [
    (SGD, {}),
    (SGD, {"momentum": 0.9}),
    (SGD, {"momentum": 0.9, "nesterov": True}),
    (SGD, {"momentum": 0.9, "dampening": 0.3}),
    (SGD, {"momentum": 0.9, "form": "classic"}),
    (SGD, {"momentum": 0.9, "form": "classic", "nesterov": True}),
    (SGD, {"momentum": 0.9, "form": "ema"}),
    (Adagrad, {}),
    (Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    (Adagrad, {"eps_placement": "outside", "eps": 1e-10}),
    (Adagrad, {"accumulator": "row"}),
    (Adagrad, {"accumulator": "row", "eps_placement": "outside", "lr_decay": 0.1}),
]

OPTIONS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.01},
    {"weight_decay": 0.01, "decoupled": True},
    {"maximize": True},
    {"scale": 0.37},
    {"weight_decay": 0.01, "maximize": True, "scale": 0.37},
]

STEPS = 1000  # of a trajectory

# How param and gradient of shape (9, 150) lie in a buffer of shape (18, 300).
LAYOUTS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "dense": (lambda a: a.reshape(-1)[:1350], lambda a: a.reshape(-1)[:1350]),
    "shifted": (lambda a: a.reshape(-1)[1:1351], lambda a: a.reshape(-1)[3:1353]),
    "strided": (lambda a: a[::2, ::2], lambda a: a[:9, :150]),
    "reversed": (lambda a: a[:9, 149::-1], lambda a: a[8::-1, :150]),
    "transposed": (lambda a: a[:9, :150], lambda a: a.reshape(300, 18)[:150, :9].T),
}


def twin(
    rule: type[SGD] | type[Adagrad],
    param: Array,
    grad: Array | RowGrad,
    state: Array | None,
    t: int,
    options: dict[str, Any],
) -> None:
    """One step in NumPy, in the order of operations that the rules promise."""
    step: Callable[..., None] = getattr(_reference, rule.__name__.lower())
    if isinstance(grad, RowGrad):
        _reference.by_rows(step, param, grad.rows, grad.values, state, t, **options)
    else:
        step(param, grad, state, t, **options)


def twin_options(options: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's options in the twin's words."""
    unused = ("frozen", "initial_accumulator_value")
    chosen = {name: value for name, value in options.items() if name not in unused}
    if "accumulator" in chosen:
        chosen["per"] = chosen.pop("accumulator")
    return chosen


def numbers(seed: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """Multiples of 2^-20 from -4 to 4: exact in float32 and float64, the same on every machine."""
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    centred = (raw >> np.uint64(41)).astype(np.float64) - 2**22
    return (centred / 2**20).astype(dtype).reshape(shape)


@cache
def awkward(seed: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """The same with zeros, infinities, NaN, subnormal and huge numbers among them."""
    array = numbers(seed, shape, dtype)
    limits = np.finfo(dtype)
    odd = [0, -0.0, np.inf, -np.inf, np.nan, limits.smallest_subnormal, limits.tiny, limits.max]
    flat = array.reshape(-1)
    for i, value in enumerate(odd):
        flat[i + 23 * seed :: 311] = value
    array.flags.writeable = False
    return array


@cache
def uneven(seed: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """Numbers with exponents apart, so that a sum tells the order of its terms."""
    exponents = -7 * np.arange(np.prod(shape)).reshape(shape) % 31
    array: Array = np.ldexp(numbers(seed, shape, dtype), exponents - 31).astype(dtype)
    return array


def by_rows(seed: int, values: Array) -> RowGrad:
    """A gradient of four rows, which come as often as there are values."""
    rows = 2 * (np.random.PCG64(seed).random_raw(len(values)) % np.uint64(4))
    return RowGrad(rows.astype(np.int32 if seed % 2 else np.int64), values)


def is_same(a: Array, b: Array) -> Array:
    """Where the bits are equal, or both are NaN."""
    bits = f"i{a.itemsize}"
    same: Array = np.ascontiguousarray(a).view(bits) == np.ascontiguousarray(b).view(bits)
    return same if same.all() else same | (np.isnan(a) & np.isnan(b))


class Pair:
    """An optimizer forced to one ISA level, and its twin."""

    def __init__(
        self, rule: type[SGD] | type[Adagrad], options: dict[str, Any], param: Array, level: str
    ) -> None:
        self.rule, self.scale = rule, options.get("scale", 1.0)
        made = {name: value for name, value in options.items() if name != "scale"}
        self.param, self.twin_param = param, param.copy()
        self.opt = rule(param, lr=0.05, **made)
        self.opt._use_level(level)
        self.options = twin_options(self.opt.param_groups[0].options()) | {"scale": self.scale}
        self.state = self.opt.state[""].get(rule._slot)
        self.twin_state = None if self.state is None else self.state.copy()

    def step(self, grad: Array | RowGrad) -> None:
        self.opt.step(grad, scale=self.scale)

    def step_twin(self, grad: Array | RowGrad, t: int) -> None:
        twin(self.rule, self.twin_param, grad, self.twin_state, t, self.options)

    def count_different(self) -> int:
        right = is_same(self.param, self.twin_param)
        if self.state is not None and self.twin_state is not None:
            kept = is_same(self.state, self.twin_state)
            right = right & (kept if kept.ndim == right.ndim else kept[:, np.newaxis])
        return int(np.sum(~right))


def grid() -> Iterator[tuple[Any, dict[str, Any], str, str, str, bool]]:
    """Rule, its options, layout, dtype of the param, dtype of the gradient, whether it names its
    rows."""
    for rule, own in RULES:
        for extra in OPTIONS:
            for dtype, other in (("float32", "float64"), ("float64", "float32")):
                for layout in LAYOUTS:
                    yield rule, own | extra, layout, dtype, dtype, False
                yield rule, own | extra, "dense", dtype, other, False
                yield rule, own | extra, "transposed", dtype, "float16", False
                yield rule, own | extra, "transposed", dtype, other, True


def check_level(level: str) -> tuple[int, int, int]:
    """Runs, elements compared and elements that differ; each run that differs is printed."""
    runs = compared = different = 0
    for rule, options, layout, dtype, grad_dtype, sparse in grid():
        place, place_grad = LAYOUTS[layout]
        param = place(awkward(1, (18, 300), dtype).copy())
        pair = Pair(rule, options, param, level)
        wrong = 0
        for t in range(3):
            values = place_grad((uneven if sparse else awkward)(2 + t, (18, 300), grad_dtype))
            grad = by_rows(t, values) if sparse else values
            pair.step(grad)
            pair.step_twin(grad, t)
            wrong += pair.count_different()
        if wrong:
            chosen = ", ".join(f"{name}={value!r}" for name, value in options.items())
            print(
                f"{level}: {rule.__name__}({chosen}), {dtype}, gradient {grad_dtype}, {layout}"
                f"{', by rows' if sparse else ''}: "
                f"{wrong:,} of {3 * param.size:,} elements differ"
            )
        runs, compared, different = runs + 1, compared + 3 * param.size, different + wrong
    return runs, compared, different


def bowls(level: str) -> Iterator[tuple[Pair, Array, Array]]:
    """Every rule in both dtypes, and the quadratic bowl that it goes down: centre and slope."""
    for rule, options in RULES:
        for dtype in (np.float32, np.float64):
            centre = numbers(1, (67,), dtype)
            slope = np.abs(numbers(2, (67,), dtype)) / 4
            yield Pair(rule, options, numbers(3, (67,), dtype), level), centre, slope


def trajectory(level: str, by_twin: bool = False) -> str:
    """SHA-256 of all params after each of 1,000 steps down a quadratic bowl, under every rule."""
    sha = hashlib.sha256()
    for pair, centre, slope in bowls(level):
        w = pair.twin_param if by_twin else pair.param
        for t in range(STEPS):
            grad = slope * (w - centre)
            if by_twin:
                pair.step_twin(grad, t)
            else:
                pair.step(grad)
            sha.update(w.tobytes())
    return sha.hexdigest()


def selftest() -> int:
    """Check and print, level by level; 1 if anything differs."""
    expected = trajectory(_core.isa_supported[0], by_twin=True)
    failed = False
    for level in _core.isa_supported:
        with np.errstate(all="ignore"):
            runs, compared, different = check_level(level)
        found = trajectory(level)
        print(f"{level:<10} {runs:,} runs, {compared:,} elements: {different:,} differ from NumPy")
        if found != expected:
            print(f"{level}: another trajectory than NumPy's, sha256 {found}")
        failed = failed or different > 0 or found != expected
    if failed:
        print("selftest: FAILED; do not trust this build, and please report the lines above")
        return 1
    print(f"1,000 steps of every rule, in NumPy and at every level: sha256\n{expected}")
    return 0
