"""What a copy of an optimizer takes along, and the peace to make one in."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np


@contextmanager
def paused(opt: Any) -> Iterator[None]:
    """No other thread steps the optimizer meanwhile."""
    opt._enter()
    try:
        yield
    finally:
        opt._leave()


class Containers:
    """What an optimizer watches, for its copy: copy.deepcopy finds the copies of the containers.

    A pickle takes none along.
    """

    def __init__(self, optimizer: Any = None, memo: Mapping[Any, Any] | None = None) -> None:
        self._optimizer, self._memo = optimizer, memo

    def __reduce__(self) -> tuple[Any, ...]:
        return Containers, ()

    def __deepcopy__(self, memo: Mapping[Any, Any]) -> Self:
        return type(self)(self._optimizer, memo)

    def hand_to(self, copy: Any) -> None:
        if self._memo is not None:
            copy._watch_copies(self._optimizer, self._memo)


def writeable(array: Any) -> Any:
    """The array, or a copy where its memory is read-only: joblib's, Ray's and Dask's workers get
    such, and so does ``joblib.load(mmap_mode="r")``."""
    if array.flags.writeable:
        return array
    return np.array(array, order="K", subok=not isinstance(array, np.memmap))
