"""What an optimizer remembers, as plain dicts, and whether another one can take it."""

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from thalweg._optimizer.groups import LIMITS
from thalweg._optimizer.options import plain, same

VERSION = 2
READABLE = (1, 2)

# What a live optimizer must have in common with what is loaded; other options are restored.
KEPT = ("form", "nesterov", "dampening", "eps", "eps_placement", "accumulator")

KEYS = (
    "version",
    "rule",
    "step_count",
    "skipped_steps",
    "grad_norm",
    "last_lr",
    "limits",
    "groups",
    "arrays",
)
LATER = ("last_lr",)  # what the first version did not have


def rule_of(opt: Any) -> str:
    """SGD or Adagrad, of subclasses too."""
    return next(t.__name__ for t in type(opt).__mro__ if t.__module__ == "thalweg.optimizers")


def describe(opt: Any) -> dict[str, Any]:
    """All but the params. The arrays are views of the live state. An average that has taken no step
    is none yet: the first one makes it."""
    arrays = {}
    started = opt._averages_started
    for i, name in enumerate(opt._arrays):
        state = opt._state_of(i)
        slots = {} if state is None else {opt._slot: state}
        if started[i]:
            slots["average"] = opt._average_of(i)
        arrays[name] = {"group": opt._group_of[i], "step": opt._steps_of(i)} | slots
    return {
        "version": VERSION,
        "rule": rule_of(opt),
        "step_count": opt.step_count,
        "skipped_steps": opt.skipped_steps,
        "grad_norm": opt.grad_norm,
        "last_lr": list(opt.last_lr),
        # Without averages it is what it was before there were any.
        "limits": {
            name: value
            for name in LIMITS
            if (value := getattr(opt, name)) is not None or name != "weight_average"
        },
        "groups": [
            _named(group.name) | {name: plain(value) for name, value in group.items()}
            for group in opt.param_groups
        ],
        "arrays": arrays,
    }


def _named(name: str | None) -> dict[str, Any]:
    return {} if name is None else {"name": name}


def mapped(found: Mapping[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The description with each array, or what stands for it, changed."""
    arrays = {
        name: {
            key: value if key in ("group", "step") else change(value) for key, value in each.items()
        }
        for name, each in found["arrays"].items()
    }
    return {**found, "arrays": arrays}


def _broken(found: Any) -> Iterator[str]:
    """What keeps anything else from being asked of a description."""
    if not isinstance(found, Mapping):
        yield f"expected a mapping, received {type(found).__name__}"
        return
    version = found.get("version")
    if not any(same(each, version) for each in READABLE):
        yield f"version: expected {' or '.join(map(str, READABLE))}, received {version!r}"
        return
    missing = [key for key in KEYS if key not in found and key not in LATER]
    if missing:
        yield f"expected the keys {', '.join(KEYS)}, received none called {', '.join(missing)}"
        return
    groups = found["groups"]
    if not isinstance(groups, list) or not all(isinstance(group, Mapping) for group in groups):
        yield "groups: expected a list of mappings"
    if not isinstance(found["arrays"], Mapping):
        yield "arrays: expected a mapping by name"


def _is_entry(array: Any) -> bool:
    return isinstance(array, Mapping) and {"group", "step"} <= set(array)


def _unsound(found: Mapping[str, Any]) -> Iterator[str]:
    """What of one that is not broken can be no optimizer's."""
    for key in ("step_count", "skipped_steps"):
        yield from count_problems(key, found[key])
    yield from norm_problems(found["grad_norm"])
    groups, rates = found["groups"], found.get("last_lr")
    if rates is not None and not _are_rates(rates, len(groups)):
        yield f"last_lr: expected None or a number >= 0 for each group, received {rates!r}"
    for name, each in found["arrays"].items():
        if not _is_entry(each):
            keys = ", ".join(map(str, each)) if isinstance(each, Mapping) else repr(each)
            yield f"arrays[{name!r}]: expected group, step and a state, received {keys}"
            continue
        yield from count_problems(f"arrays[{name!r}].step", each["step"])
        if not any(same(i, each["group"]) for i in range(len(groups))):
            yield f"arrays[{name!r}]: expected a group, received {each['group']!r}"


def form_problems(found: Any) -> Iterator[str]:
    """What keeps this from being a description of an optimizer, whichever it is."""
    broken = [*_broken(found)]
    yield from broken or _unsound(found)


def problems(opt: Any, found: Any, kind: Any = np.ndarray) -> Iterator[str]:
    """What keeps this optimizer from taking this description; nothing if it fits.

    ``kind`` is what its arrays are: arrays, or what a file says of them.
    """
    yield from form_problems(found)
    if any(_broken(found)):
        return
    live = describe(opt)
    if not same(live["rule"], found["rule"]):
        yield f"rule: expected {live['rule']}, received {found['rule']!r}"
        return
    yield from _group_problems(live["groups"], found["groups"])
    yield from _array_problems(live["arrays"], found["arrays"], kind)
    yield from _average_problems(opt, found["arrays"], kind)


def norm_problems(value: Any) -> Iterator[str]:
    if value is not None and not _is_norm(value):
        yield f"grad_norm: expected a number >= 0 or None, received {value!r}"


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


def count_problems(name: str, value: Any) -> Iterator[str]:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not 0 <= value < 2**63:
        yield f"{name}: expected a whole number >= 0, received {value!r}"


def _group_problems(live: list[Any], found: list[Any]) -> Iterator[str]:
    if len(found) != len(live):
        yield f"groups: expected {len(live)}, received {len(found)}"
        return
    for i, (mine, other) in enumerate(zip(live, found, strict=True)):
        # A group of which one has no name is known by its place alone.
        if "name" in mine and "name" in other and not same(mine["name"], other["name"]):
            yield f"groups[{i}]: expected the name {mine['name']!r}, received {other['name']!r}"
        if differing := (set(mine) ^ set(other)) - {"name"}:
            expected = ", ".join(each for each in mine if each != "name")
            names = ", ".join(sorted(map(str, differing)))
            yield f"groups[{i}]: expected the options {expected}; not in both: {names}"
            continue
        yield from kept_problems(f"groups[{i}]", mine, other)


def kept_problems(place: str, mine: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """What the options of two groups must have in common, so that their state means the same."""
    for name in KEPT:
        if name in mine and not same(mine[name], other.get(name)):
            yield f"{place}.{name}: expected {mine[name]!r}, received {other.get(name)!r}"


def _array_problems(live: dict[str, Any], found: Any, kind: Any) -> Iterator[str]:
    for name in live:
        if name not in found:
            yield f"arrays[{name!r}]: expected, but missing"
    for name, other in found.items():
        if name not in live:
            yield f"arrays[{name!r}]: no array of the optimizer has this name"
            continue
        mine = live[name]
        if not _is_entry(other):
            continue
        if slots_of(other) != slots_of(mine):
            keys = ", ".join(map(str, other))
            yield f"arrays[{name!r}]: expected {', '.join(mine)}, received {keys}"
            continue
        if not same(mine["group"], other["group"]):
            yield f"arrays[{name!r}]: expected group {mine['group']}, received {other['group']!r}"
        yield from slot_problems(f"arrays[{name!r}]", mine, other, kind)


def slots_of(entry: Mapping[str, Any]) -> set[str]:
    """All but the average: weight_average says whether there is to be one."""
    return set(entry) - {"average"}


def _average_problems(opt: Any, found: Any, kind: Any) -> Iterator[str]:
    for name, param in opt._arrays.items():
        if _is_entry(other := found.get(name)) and "average" in other:
            yield from fit(f"arrays[{name!r}].average", np.asarray(param), other["average"], kind)


def slot_problems(
    place: str, mine: Mapping[str, Any], other: Mapping[str, Any], kind: Any
) -> Iterator[str]:
    for slot in slots_of(mine) - {"group", "step"}:
        yield from fit(f"{place}.{slot}", mine[slot], other[slot], kind)


def fit(name: str, live: Any, other: Any, kind: Any) -> Iterator[str]:
    """Whether an array, or the description of one, can be copied into the live one."""
    expected = f"{name}: expected {live.dtype} of shape {live.shape}"
    if not isinstance(other, kind):
        yield f"{expected}, received {type(other).__name__}"
    elif other.shape != live.shape or other.dtype != live.dtype:
        yield f"{expected}, received {other.dtype} of shape {other.shape}"
    elif not live.flags.writeable:
        yield f"{expected}, writeable; the live one has become read-only"
