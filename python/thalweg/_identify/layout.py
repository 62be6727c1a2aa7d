"""All arrays as one vector: what makes an array or a row in it, and gradients clipped by that."""

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class Layout:
    """Vectors may stand in a matrix, a row for each trial."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        sizes = [int(np.prod(shape)) for shape in shapes]
        self._arrays = np.array([size for size in sizes if size])
        rows = [(shape[0] if shape else 1, size) for shape, size in zip(shapes, sizes, strict=True)]
        self._rows = np.array([size // n for n, size in rows if size for _ in range(n)])

    def over_array(self, values: Array, mean: bool = False) -> Array:
        """The sum or mean over the array that an element belongs to."""
        return _over(self._arrays, values, mean)

    def over_row(self, values: Array, mean: bool = True) -> Array:
        return _over(self._rows, values, mean)

    def clipped(self, g: Array, numbers: Mapping[str, Any]) -> Array:
        if "max_value" in numbers:
            g = np.clip(g, -numbers["max_value"], numbers["max_value"])
        for name in ("max_norm", "max_array_norm"):
            if name in numbers:
                squares = g * g
                total = (
                    squares.sum(axis=-1, keepdims=True)
                    if name == "max_norm"
                    else self.over_array(squares)
                )
                factor = numbers[name] / (np.sqrt(total) + numbers.get("norm_eps", 0.0) + 1e-300)
                g = np.minimum(factor, 1.0) * g
        return g


def _over(lengths: Array, values: Array, mean: bool) -> Array:
    sums = np.add.reduceat(values, np.cumsum(lengths) - lengths, axis=-1)
    result: Array = np.repeat(sums / lengths if mean else sums, lengths, axis=-1)
    return result
