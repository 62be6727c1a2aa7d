"""Steps of small params, which every rank makes whole: one exchange, of all gradients to all."""

from typing import Any

import numpy as np

from thalweg import _core
from thalweg._optimizer.tree import fill
from thalweg.mpi import shards
from thalweg.mpi.agreement import HEADER
from thalweg.mpi.link import Link
from thalweg.mpi.sums import add_in_order
from thalweg.rows import RowGrad

Array = np.ndarray[Any, Any]


class Whole:
    """What is sent, what arrives, and the sum, made once."""

    def __init__(self, opt: Any, link: Link) -> None:
        self._opt, self._link = opt, link
        params = self._params = opt._shown
        # float64 first: whatever follows is aligned.
        wide = sum(p.size for p in params if p.itemsize == 8)
        narrow = sum(p.size for p in params if p.itemsize == 4)
        size = -(-(HEADER + 8 * wide + 4 * narrow) // 64) * 64
        self._send, self._received = bytearray(size), bytearray(size * link.size)
        self._headers = range(0, size * link.size, size)
        self._is_dense = True

        def parts(buffer: bytearray, base: int) -> tuple[Array, Array]:
            middle = base + HEADER + 8 * wide
            return (
                np.frombuffer(buffer, np.float64, wide, base + HEADER),
                np.frombuffer(buffer, np.float32, narrow, middle),
            )

        lines = [parts(self._received, size * rank) for rank in range(link.size)]
        sums = parts(bytearray(size), 0)
        self._additions = [
            (out, [line[k] for line in lines]) for k, out in enumerate(sums) if out.size
        ]
        self._slots, self._sums = self._views(parts(self._send, 0)), self._views(sums)
        self._sum_tree = fill(opt._tree, self._sums)

    def _views(self, lines: tuple[Array, Array]) -> list[Array]:
        views = []
        at = [0, 0]
        for param in self._params:
            k = 0 if param.itemsize == 8 else 1
            views.append(lines[k][at[k] : at[k] + param.size].reshape(param.shape))
            at[k] += param.size
        return views

    def put(self, found: list[Any]) -> None:
        """All that may fail on one rank alone, before the ranks agree."""
        self._is_dense = True
        for slot, grad in zip(self._slots, found, strict=True):
            if isinstance(grad, np.ndarray):
                slot[...] = grad
            else:
                self._is_dense = False

    def is_same(self, header: bytes) -> bool:
        """Whether all ranks have sent this header, of a step that may be taken."""
        self._send[:HEADER] = header
        self._link.comm.Allgather(self._send, self._received)
        if header[8] != 1:
            return False
        received = self._received
        return all(received[at : at + HEADER] == header for at in self._headers)

    def step(self, found: list[Any], factor: float) -> bool:
        """The step with the sum of what has arrived."""
        for out, parts in self._additions:
            add_in_order(out, parts)
        tree = self._sum_tree
        if not self._is_dense:
            sums: list[Any] = list(self._sums)
            for i, grad in enumerate(found):
                if isinstance(grad, RowGrad):
                    sums[i] = shards.all_rows(self._link, grad, self._params[i].dtype)
                elif grad is None:
                    sums[i] = None
            tree = fill(self._opt._tree, sums)
        return _core.Optimizer.step(self._opt, tree, scale=factor)
