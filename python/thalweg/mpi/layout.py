"""Which rows of which array belong to which rank."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg._reference import BLOCK

# A cut keeps to whole blocks of the norm where these are no more bytes than this.
LARGEST_UNIT = 256 << 10

Array = np.ndarray[Any, Any]


def rows_of(array: Array) -> Array:
    """The array with at least one axis; a view."""
    return array if array.ndim else array.reshape(1)


def cut(arrays: Sequence[Array], ranks: int) -> list[list[int]]:
    """For each array ``ranks + 1`` row numbers: rank r owns the rows from the r-th to the next.

    The arrays stand in a line that is cut into equal parts of bytes, each cut moved to the nearest
    row that begins a block of the norm. Where a row is such that blocks rarely begin on one, any
    row will do.
    """
    total = sum(array.nbytes for array in arrays)
    cuts, offset = [], 0
    for array in map(rows_of, arrays):
        rows, width = array.shape[0], math.prod(array.shape[1:])
        unit = BLOCK // math.gcd(width, BLOCK)
        if unit * width * array.itemsize > LARGEST_UNIT:
            unit = 1
        mine = [0]
        for rank in range(1, ranks):
            inside = total * rank // ranks - offset
            if inside >= array.nbytes:
                row = rows
            elif inside <= 0:
                row = 0
            else:
                row = min(rows, round(inside / (width * array.itemsize) / unit) * unit)
            mine.append(max(row, mine[-1]))
        cuts.append([*mine, rows])
        offset += array.nbytes
    return cuts


def blocks(count: int, ranks: int) -> list[int]:
    """Row numbers of equal parts of a table's rows."""
    return [count * rank // ranks for rank in range(ranks + 1)]
