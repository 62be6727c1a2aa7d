"""What stands before the first write: the norm, and whether the sum is finite, over all ranks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg import _reference
from thalweg._optimizer.tree import label
from thalweg.mpi.link import Link
from thalweg.mpi.sums import squares
from thalweg.rows import RowGrad

Array = np.ndarray[Any, Any]


class Stretch:
    """A rank's rows of one summed gradient, prepared as the rule receives it before the norm."""

    def __init__(self, name: str, shape: tuple[int, ...], sums: Any, first: int) -> None:
        """``sums`` are those of the rank's rows, from row ``first`` on: dense or by row."""
        self.name, self.shape, self.first = name, shape, first
        self.rows: Array | None = None
        if isinstance(sums, RowGrad):
            values = sums.values
            self.rows, begin, places = np.unique(sums.rows, return_index=True, return_inverse=True)
            summed = values[begin]  # not 0 + the first one: of -0 that is another bit
            others = np.ones(len(values), bool)
            others[begin] = False
            with np.errstate(all="ignore"):
                np.add.at(summed, places[others], values[others])  # in order of appearance
            sums = summed
        self.values: Array = sums
        self.bad = (0, 0, -1)

    def prepare(self, scale: float, max_value: float | None, judged: bool) -> None:
        values = _reference.scaled(self.values, self.values.dtype, scale)
        if judged and not np.isfinite(values).all():
            bad = np.flatnonzero(~np.isfinite(values.reshape(-1)))
            nans = int(np.isnan(values).sum())
            self.bad = nans, len(bad) - nans, self._element(int(bad[0]))
        self.values = _reference.bounded(values, max_value)

    def overflown(self, clip: float, per: str | None) -> tuple[int, int]:
        """How many squares overflow, and the first one's place in the array."""
        values = self.values
        if per is None or not values.size:
            return 0, -1
        found = np.flatnonzero(_reference.overflown(values, values.dtype, clip=clip, per=per))
        if not len(found):
            return 0, -1
        width = math.prod(values.shape[1:]) if per == "row" else 1
        return len(found), self._element(int(found[0]) * width)

    def clipped(self, clip: float) -> Any:
        """What the rule is fed, clipped here where the core's scale could not."""
        with np.errstate(all="ignore"):
            if not clip >= 1.0:  # a NaN, too, is multiplied
                self.values = self.values.dtype.type(clip) * self.values
        return self.values if self.rows is None else RowGrad(self.rows, self.values)

    def _element(self, index: int) -> int:
        width = math.prod(self.shape[1:])
        if self.rows is not None:
            row, column = divmod(index, width)
            return (self.first + int(self.rows[row])) * width + column
        return self.first * width + index


@np.errstate(all="ignore")
def norm_of(link: Link, stretches: Sequence[Stretch]) -> np.float64:
    total = np.float64(0.0)
    for square in squares(link, [s.values for s in stretches]):
        total = total + square
    norm: np.float64 = np.sqrt(total)
    return norm


@np.errstate(all="ignore")
def norms_of(link: Link, stretches: Sequence[Stretch]) -> list[np.float64]:
    """Of each array by itself."""
    return [np.sqrt(square) for square in squares(link, [s.values for s in stretches])]


def find_bad(link: Link, stretches: Sequence[Stretch]) -> str:
    """A message of the elements that are not finite, on whatever rank; empty without any."""
    mine = np.array([s.bad for s in stretches], np.int64)
    words = []
    for stretch, (nans, infinities, first) in zip(stretches, _all(link, mine), strict=True):
        if nans + infinities:
            words.append(
                f"{label('grads', stretch.name)}: expected finite elements, received {nans} NaN "
                f"and {infinities} inf, the first at {_place(stretch.shape, first)}"
            )
    return _refusal(words)


def clip_of(max_norm: float, norm: np.float64, norm_eps: float) -> float:
    return float(_reference.clip_factor(max_norm, norm, norm_eps))


def find_overflown(
    link: Link,
    stretches: Sequence[Stretch],
    clips: Sequence[float],
    norms: Sequence[np.float64],
    squared: Sequence[str | None],
) -> str:
    """The same of a norm that overflows, and of what Adagrad squares, by "element" or "row"."""
    words = []
    each = list(zip(stretches, squared, clips, strict=True))
    mine = np.array([(0, *s.overflown(clip, per)) for s, per, clip in each], np.int64)
    for (stretch, per, _), (_, count, first) in zip(each, _all(link, mine), strict=True):
        if count:
            what = "rows whose mean square" if per == "row" else "elements whose square"
            words.append(
                f"{label('grads', stretch.name)}: expected {what} is finite in "
                f"{stretch.values.dtype}, received {count} that overflow, the first at "
                f"{_place(stretch.shape, first)}"
            )
    if words:
        words[-1] += "; max_norm or max_value clips them, scale makes them smaller"
    elif not np.isfinite(norms).all():
        words.append(
            "grads: expected a norm that float64 can hold, received one that overflows "
            "although every element is finite; max_value clips the elements, scale makes them "
            "smaller"
        )
    return _refusal(words)


def _all(link: Link, mine: Array) -> list[tuple[int, int, int]]:
    """Counts of all ranks and the first of their firsts, for each array."""
    everyone = link.gather_counts(mine.reshape(-1)).reshape(link.size, -1, 3)
    found = []
    for i in range(everyone.shape[1]):
        firsts = [int(first) for first in everyone[:, i, 2] if first >= 0]
        sums = everyone[:, i].sum(axis=0)
        found.append((int(sums[0]), int(sums[1]), min(firsts, default=-1)))
    return found


def _place(shape: tuple[int, ...], element: int) -> str:
    return "[" + ", ".join(str(int(i)) for i in np.unravel_index(element, shape)) + "]"


def _refusal(words: list[str]) -> str:
    if not words:
        return ""
    return "; ".join(words) + '; nothing has changed; on_nonfinite="skip" leaves such steps out'
