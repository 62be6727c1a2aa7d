"""What a caller wants to keep beside the optimizer: JSON values and arrays."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from thalweg._checkpoint.archive import DTYPE

DEEPEST = 100  # levels; what is written must be readable from deeper down the stack
LONGEST = 4000  # digits of a number; Python reads no more than 4,300
TOO_LONG = 10**LONGEST


def to_json(value: Any, path: str, arrays: list[np.ndarray], level: int = 0) -> Any:
    """JSON in which {"dict": ...} is a dict and {"array": i} one of the arrays."""
    if level > DEEPEST:
        raise ValueError(
            f"{path[:80]}...: expected nesting of at most {DEEPEST} levels, received more; does it "
            "contain itself?"
        )
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if abs(value) >= TOO_LONG:
            raise ValueError(
                f"{path}: expected a number of at most {LONGEST:,} digits, received a longer one"
            )
        return value
    if isinstance(value, float):
        # JSON has no names for these.
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, np.ndarray):
        named = value.dtype.str
        if not DTYPE.fullmatch(named) or np.dtype(named) != value.dtype:
            raise TypeError(
                f"{path}: expected an array of numbers, bools, strings or dates, received dtype "
                f"{value.dtype}"
            )
        if isinstance(value, np.ma.MaskedArray):
            raise TypeError(
                f"{path}: expected an array, received a masked one; store .data and .mask"
            )
        arrays.append(np.array(value, copy=None, subok=False))
        return {"array": len(arrays) - 1}
    if isinstance(value, (list, tuple)):
        return [to_json(x, f"{path}[{i}]", arrays, level + 1) for i, x in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path}: expected keys that are str, received {key!r}")
        return {
            "dict": {k: to_json(v, f"{path}[{k!r}]", arrays, level + 1) for k, v in value.items()}
        }
    raise TypeError(
        f"{path}: expected None, a bool, number, str, array, list or dict, received "
        f"{type(value).__name__}"
    )


_TAGS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "array": lambda content, arrays: arrays[content],
    "dict": lambda content, arrays: {k: from_json(v, arrays) for k, v in content.items()},
    "float": lambda content, arrays: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content],
}


def from_json(value: Any, arrays: list[Any]) -> Any:
    if isinstance(value, list):
        return [from_json(each, arrays) for each in value]
    if isinstance(value, dict):
        ((tag, content),) = value.items()
        return _TAGS[tag](content, arrays)
    return value
