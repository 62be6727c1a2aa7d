"""The state of an array as a checkpoint sees it: whole, though each rank holds a part."""

from typing import Any

import numpy as np

from thalweg.mpi.together import Together

Array = np.ndarray[Any, Any]


class Parts:
    """Stands for an array of which this rank holds some rows; gathered or dealt when asked.

    Only what ``Together.act`` runs may ask, as the other ranks serve then.
    """

    def __init__(
        self, together: Together, leaf: int, own: Array, param: Array, rows: list[int]
    ) -> None:
        self._together, self._leaf, self._own, self._rows = together, leaf, own, rows
        by_row = own.ndim < max(1, param.ndim) or (own.ndim == 1 and param.ndim == 0)
        self.dtype = own.dtype
        self.shape: tuple[int, ...] = param.shape[:1] if by_row else param.shape
        self.size = int(np.prod(self.shape))
        self.nbytes = self.size * self.dtype.itemsize
        self.flags = own.flags

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        shape = (self._rows[-1], *self._own.shape[1:])
        whole = self._together.gather(self._leaf, np.empty(shape, self.dtype), self._own)
        found = whole.reshape(self.shape)
        return found if dtype is None else found.astype(dtype)

    def copy(self, order: str = "K") -> Array:
        return np.asarray(self)

    def fill(self, whole: Array) -> None:
        """Deal the rows of an array of this shape to those who hold them."""
        rows = whole.reshape((self._rows[-1], *self._own.shape[1:]))
        self._together.deal(self._leaf, np.ascontiguousarray(rows, self.dtype), self._own)
