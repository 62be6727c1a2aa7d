"""What an optimizer remembers, as plain dicts, and how it is put back: all of it or nothing."""

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from thalweg._optimizer.groups import LIMITS
from thalweg._optimizer.options import Chosen, plain, put, same

VERSION = 2
READABLE = (1, 2)

# What a live optimizer must have in common with what is loaded; other options are restored.
KEPT = ("form", "nesterov", "dampening", "eps", "eps_placement", "accumulator")

LATER = ("last_lr",)  # what the first version did not have

Copy = Callable[[Any, Any], None]


def rule_of(opt: Any) -> str:
    """SGD or Adagrad, of subclasses too."""
    return next(t.__name__ for t in type(opt).__mro__ if t.__module__ == "thalweg.optimizers")


def params(opt: Any) -> dict[str, Any]:
    """By name."""
    found: dict[str, Any] = opt._arrays
    return found


def describe(opt: Any) -> dict[str, Any]:
    """All but the params. The arrays are views of the live state."""
    arrays = {}
    for i, name in enumerate(opt._arrays):
        state = opt._state_of(i)
        slots = {} if state is None else {opt._slot: state}
        arrays[name] = {"group": opt._group_of[i], "step": opt._steps_of(i)} | slots
    return {
        "version": VERSION,
        "rule": rule_of(opt),
        "step_count": opt.step_count,
        "skipped_steps": opt.skipped_steps,
        "grad_norm": opt.grad_norm,
        "last_lr": list(opt.last_lr),
        "limits": {name: getattr(opt, name) for name in LIMITS},
        "groups": [
            {name: plain(value) for name, value in group.items()} for group in opt.param_groups
        ],
        "arrays": arrays,
    }


def taken(opt: Any) -> dict[str, Any]:
    """The description of an optimizer that is paused, with copies of its arrays."""
    opt._check_whole()
    return mapped(describe(opt), lambda array: array.copy(order="K"))


def mapped(found: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The description with each array, or what stands for it, changed."""
    arrays = {
        name: {
            key: value if key in ("group", "step") else change(value) for key, value in each.items()
        }
        for name, each in found["arrays"].items()
    }
    return {**found, "arrays": arrays}


def problems(opt: Any, found: Any, kind: Any = np.ndarray) -> Iterator[str]:
    """What keeps this optimizer from taking this description; nothing if it fits.

    ``kind`` is what its arrays are: arrays, or what a file says of them.
    """
    if not isinstance(found, Mapping):
        yield f"expected a mapping, received {type(found).__name__}"
        return
    version = found.get("version")
    if not any(same(each, version) for each in READABLE):
        yield f"version: expected {' or '.join(map(str, READABLE))}, received {version!r}"
        return
    live = describe(opt)
    missing = [key for key in live if key not in found and key not in LATER]
    if missing:
        yield f"expected the keys {', '.join(live)}, received none called {', '.join(missing)}"
        return
    if not same(live["rule"], found["rule"]):
        yield f"rule: expected {live['rule']}, received {found['rule']!r}"
        return
    for key in ("step_count", "skipped_steps"):
        yield from _count(key, found[key])
    norm = found["grad_norm"]
    if norm is not None and not _is_norm(norm):
        yield f"grad_norm: expected a number >= 0 or None, received {norm!r}"
    rates = found.get("last_lr")
    if rates is not None and not _are_rates(rates, len(live["groups"])):
        yield f"last_lr: expected None or a number >= 0 for each group, received {rates!r}"
    yield from _group_problems(live["groups"], found["groups"])
    yield from _array_problems(live["arrays"], found["arrays"], kind)


def _is_norm(value: Any) -> bool:
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and not float(value) < 0
    except OverflowError:
        return False


def _are_rates(value: Any, count: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == count
        and all(rate is None or (_is_norm(rate) and math.isfinite(rate)) for rate in value)
    )


def _count(name: str, value: Any) -> Iterator[str]:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not 0 <= value < 2**63:
        yield f"{name}: expected a whole number >= 0, received {value!r}"


def _group_problems(live: list[Any], found: Any) -> Iterator[str]:
    if not isinstance(found, list) or not all(isinstance(group, Mapping) for group in found):
        yield "groups: expected a list of mappings"
        return
    if len(found) != len(live):
        yield f"groups: expected {len(live)}, received {len(found)}"
        return
    for i, (mine, other) in enumerate(zip(live, found, strict=True)):
        if set(mine) != set(other):
            names = ", ".join(sorted(map(str, set(mine) ^ set(other))))
            yield f"groups[{i}]: expected the options {', '.join(mine)}; not in both: {names}"
            continue
        for name in KEPT:
            if name in mine and not same(mine[name], other[name]):
                yield f"groups[{i}].{name}: expected {mine[name]!r}, received {other[name]!r}"


def _array_problems(live: dict[str, Any], found: Any, kind: Any) -> Iterator[str]:
    if not isinstance(found, Mapping):
        yield "arrays: expected a mapping by name"
        return
    for name in live:
        if name not in found:
            yield f"arrays[{name!r}]: expected, but missing"
    for name, other in found.items():
        if name not in live:
            yield f"arrays[{name!r}]: no array of the optimizer has this name"
            continue
        mine = live[name]
        if not isinstance(other, Mapping) or set(other) != set(mine):
            keys = ", ".join(map(str, other)) if isinstance(other, Mapping) else repr(other)
            yield f"arrays[{name!r}]: expected {', '.join(mine)}, received {keys}"
            continue
        yield from _count(f"arrays[{name!r}].step", other["step"])
        if not same(mine["group"], other["group"]):
            yield f"arrays[{name!r}]: expected group {mine['group']}, received {other['group']!r}"
        for slot in set(mine) - {"group", "step"}:
            yield from fit(f"arrays[{name!r}].{slot}", mine[slot], other[slot], kind)


def fit(name: str, live: Any, other: Any, kind: Any) -> Iterator[str]:
    """Whether an array, or the description of one, can be copied into the live one."""
    expected = f"{name}: expected {live.dtype} of shape {live.shape}"
    if not isinstance(other, kind):
        yield f"{expected}, received {type(other).__name__}"
    elif other.shape != live.shape or other.dtype != live.dtype:
        yield f"{expected}, received {other.dtype} of shape {other.shape}"
    elif not live.flags.writeable:
        yield f"{expected}, writeable; the live one has become read-only"


def restore(
    opt: Any, found: Mapping[str, Any], chosen: Chosen, why: str, copy: Copy, params: Any
) -> None:
    """Set the options, copy ``params`` (pairs) and state by ``copy(live, other)``, and count.

    The description fits. ValueError, with nothing changed, if the options are out of range. Should
    anything fail later, the optimizer refuses steps, saying why.
    """
    steps = [int(found["arrays"][name]["step"]) for name in opt._arrays]
    before = opt._refusal
    opt._refuse_steps(
        f"step: {why} ended half-way, and what is live is neither old nor new; load a checkpoint"
    )
    try:
        undo = put(opt, chosen)
    except BaseException:
        opt._refuse_steps(before)
        raise
    try:
        states = [
            (state, found["arrays"][name][opt._slot])
            for i, name in enumerate(opt._arrays)
            if (state := opt._state_of(i)) is not None
        ]
        live = [state for state, _ in states]
        # All copies are made before the first write.
        for mine, other in [*params, *[(x, _apart(y, live)) for x, y in states]]:
            copy(mine, other)
        norm, rates = found["grad_norm"], found.get("last_lr")
        rates = None if rates is None else tuple(rates)
        opt._set_counters(int(found["step_count"]), steps, int(found["skipped_steps"]), norm, rates)
    except BaseException:
        undo()
        raise
    opt._refuse_steps("")
    opt._loaded = [opt.step_count]  # another one each time: a keeper sees that there was a load


def _apart(array: Any, live: list[Any]) -> Any:
    """The array, or a copy where it shares memory with what is written before it is read."""
    shared = isinstance(array, np.ndarray) and any(
        isinstance(x, np.ndarray) and np.may_share_memory(array, x) for x in live
    )
    return array.copy() if shared else array
