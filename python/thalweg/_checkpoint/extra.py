"""What a caller wants to keep beside the optimizer, as JSON and arrays."""

import base64
import datetime
import enum
import json
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, MappingView, Sequence
from dataclasses import is_dataclass
from typing import Any

import numpy as np

from thalweg._checkpoint import generator
from thalweg._checkpoint.archive import DTYPE

DEEPEST = 100  # levels; what is written must be readable from deeper down the stack
LONGEST = 4000  # digits of a number; Python reads no more than 4,300
TOO_LONG = 10**LONGEST
SHORT = 4 << 10  # bytes that stand in the JSON; more of them are an array

TAKEN = (
    "None, a bool, number, str, bytes, datetime64, array, list, tuple, dict or np.random.Generator"
)
KEYS = "keys that are str, int, float or bytes, or tuples of them"

Place = str | tuple[Any, Any]  # "extra", or one above and a key: told only where it is refused

# What people want to keep and cannot, and what they can keep in its place.
CURES: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda x: isinstance(x, os.PathLike), "str(...) of it is taken"),
    (lambda x: isinstance(x, (set, frozenset)), "it has no order; sorted(...) makes a list of it"),
    (lambda x: isinstance(x, datetime.date), "np.datetime64(...) of it is taken"),
    (lambda x: isinstance(x, datetime.timedelta), "np.timedelta64(...) of it is taken"),
    (lambda x: isinstance(x, complex), "np.array(...) of it is taken"),
    (lambda x: isinstance(x, np.random.BitGenerator), "np.random.Generator(...) of it is taken"),
    (lambda x: isinstance(x, np.random.SeedSequence), "its state is taken"),
    (lambda x: isinstance(x, random.Random), "its getstate() is taken"),
    (lambda x: isinstance(x, enum.Enum), "its value may be taken"),
    (lambda x: hasattr(x, "state_dict"), "its state_dict() may be taken"),
    (lambda x: hasattr(x, "detach"), "its detach().cpu().numpy() is taken"),
    (lambda x: hasattr(x, "__array__"), "np.asarray(...) of it may be taken"),
    (lambda x: is_dataclass(x), "dataclasses.asdict(...) makes a dict of it"),
    (lambda x: isinstance(x, (Sequence, Iterator, MappingView)), "list(...) makes a list of it"),
)


def to_json(value: Any, place: Place, arrays: list[np.ndarray], level: int = 0) -> Any:
    """JSON in which {"dict": ...} is a dict and {"array": i} one of the arrays; _TAGS has all."""
    if level > DEEPEST:
        raise ValueError(
            f"{_told(place)[:80]}...: expected nesting of at most {DEEPEST} levels, received more; "
            "does it contain itself?"
        )

    def inner(each: Any, key: Any) -> Any:
        return to_json(each, (place, key), arrays, level + 1)

    if isinstance(value, np.generic):
        if value.dtype.kind in "Mm":
            arrays.append(np.asarray(value))
            return {"scalar": len(arrays) - 1}
        value = value.item()
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        if abs(value) >= TOO_LONG:
            raise ValueError(
                f"{_told(place)}: expected a number of at most {LONGEST:,} digits, received a "
                "longer one"
            )
        return value
    if isinstance(value, float):
        # JSON has no names for these.
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, (bytes, bytearray)):
        kind = "bytes" if isinstance(value, bytes) else "bytearray"
        if len(value) <= SHORT:
            return {kind: base64.b64encode(value).decode("ascii")}
        arrays.append(np.frombuffer(value, np.uint8))
        return {kind: len(arrays) - 1}
    if isinstance(value, np.ndarray):
        _check_array(value, place)
        arrays.append(np.array(value, copy=None, subok=False))
        return {"array": len(arrays) - 1}
    if isinstance(value, (list, tuple)):
        made = [inner(each, i) for i, each in enumerate(value)]
        return made if isinstance(value, list) else {"tuple": made}
    if isinstance(value, Mapping):
        for key in value:
            if not _is_key(key):
                raise TypeError(f"{_told(place)}: expected {KEYS}, received {key!r}")
        if all(isinstance(key, str) for key in value):
            return {"dict": {key: inner(each, key) for key, each in value.items()}}
        return {"items": [[inner(key, key), inner(each, key)] for key, each in value.items()]}
    if isinstance(value, (np.random.Generator, np.random.RandomState)):
        try:
            described = generator.describe(value)
        except Exception as error:
            raise TypeError(
                f"{_told(place)}: expected a random generator with a bit generator of NumPy's own, "
                f"received {value!r}: {error}"
            ) from None
        return {"random": to_json(described, place, arrays, level + 1)}
    cures = () if isinstance(value, type) else CURES
    cure = next((f"; {cure}" for holds, cure in cures if holds(value)), "")
    raise TypeError(f"{_told(place)}: expected {TAKEN}, received {type(value).__name__}{cure}")


def _told(place: Place) -> str:
    """As Python would be told: extra["rng"][0]."""
    keys = []
    while not isinstance(place, str):
        place, key = place
        keys.append(json.dumps(key, ensure_ascii=False) if isinstance(key, str) else repr(key))
    return place + "".join(f"[{key}]" for key in reversed(keys))


def _check_array(array: np.ndarray, place: Place) -> None:
    named = array.dtype.str
    if not DTYPE.fullmatch(named) or np.dtype(named) != array.dtype:
        cure = "; its tolist() may be taken" if array.dtype.hasobject else ""
        if array.dtype.names:
            cure = "; {name: x[name] for name in x.dtype.names} is taken"
        raise TypeError(
            f"{_told(place)}: expected an array of numbers, bools, strings or dates, received "
            f"dtype {array.dtype}{cure}"
        )
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{_told(place)}: expected an array, received a masked one; store .data and .mask"
        )


def _is_key(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(map(_is_key, key))
    return isinstance(key, (str, int, float, bytes, np.generic))


def _bytes(content: Any, arrays: list[Any]) -> bytes:
    if isinstance(content, str):
        return base64.b64decode(content, validate=True)
    found: bytes = arrays[content].tobytes()
    return found


_TAGS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "array": lambda content, arrays: arrays[content],
    "bytearray": lambda content, arrays: bytearray(_bytes(content, arrays)),
    "bytes": _bytes,
    "dict": lambda content, arrays: {k: from_json(v, arrays) for k, v in content.items()},
    "float": lambda content, arrays: {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content],
    "items": lambda content, arrays: {
        from_json(k, arrays): from_json(v, arrays) for k, v in content
    },
    "random": lambda content, arrays: generator.made(from_json(content, arrays)),
    "scalar": lambda content, arrays: arrays[content][()],
    "tuple": lambda content, arrays: tuple([from_json(each, arrays) for each in content]),
}


def from_json(value: Any, arrays: list[Any]) -> Any:
    if isinstance(value, list):
        return [from_json(each, arrays) for each in value]
    if isinstance(value, dict):
        ((tag, content),) = value.items()
        return _TAGS[tag](content, arrays)
    return value
