"""Sums of gradients that reach the rank that owns the rows, and rows that come back."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from thalweg.mpi import link as links
from thalweg.mpi.layout import rows_of
from thalweg.mpi.link import Link
from thalweg.mpi.sums import add_in_order
from thalweg.rows import RowGrad

Array = np.ndarray[Any, Any]

# Bytes that a rank receives at a time, from all ranks together; twice that is on its way.
HELD = 16 << 20


def rounds(
    link: Link, cuts: Sequence[list[int]], params: Sequence[Array]
) -> list[tuple[int, int, int]]:
    """What goes at a time: (array, first row in each rank's part, rows)."""
    found = []
    for i, (cut, param) in enumerate(zip(cuts, params, strict=True)):
        step = rows_at_a_time(link, param)
        longest = max(last - first for first, last in itertools.pairwise(cut))
        found += [(i, at, step) for at in range(0, longest, step)]
    return found


def rows_at_a_time(link: Link, array: Array) -> int:
    """Those of one message, of an array like this."""
    row = max(1, math.prod(array.shape[1:]) * array.itemsize)
    return max(1, int(min(links.PIECE, HELD // link.size) // row))


class Buffers:
    """Memory that is used again: fresh pages cost more than the sums that they hold."""

    def __init__(self) -> None:
        self._held: dict[Any, bytearray] = {}

    def like(self, array: Array, use: Any) -> Array:
        """A dense array of this shape, the same memory at every call with this ``use``."""
        held = self._held.get(use)
        if held is None or len(held) < array.nbytes:
            held = self._held[use] = bytearray(array.nbytes)
        return np.frombuffer(held, array.dtype, array.size).reshape(array.shape)


def summed(
    link: Link,
    buffers: Buffers,
    grads: Sequence[Array],
    params: Sequence[Array],
    cuts: Sequence[list[int]],
    outs: Sequence[Array] | None = None,
) -> Iterator[tuple[int, int, Array]]:
    """This rank's rows of ((g0 + g1) + g2) + ..., a piece at a time: (array, first row, piece).

    The next piece is on its way while one is used; it holds until then, or lies in ``outs``.
    """
    todo = rounds(link, cuts, params)
    ahead: tuple[list[Any], list[Array]] | None = None
    for number in range(len(todo) + 1):
        arrived = ahead
        if number < len(todo):
            i, at, step = todo[number]
            turn = buffers, number % 2
            ahead = _start(link, turn, grads[i], params[i], cuts[i], at, step)
        if number == 0:
            continue
        assert arrived is not None
        requests, parts = arrived
        link.wait(requests)
        i, at, _ = todo[number - 1]
        mine = parts[link.rank]
        if outs is not None:
            out = outs[i][at : at + len(mine)]
        elif link.size == 1:
            yield i, at, mine
            continue
        else:
            out = buffers.like(mine, "sum")
        if out.size:
            add_in_order(out, parts)
        yield i, at, out


def _start(
    link: Link,
    turn: tuple[Buffers, int],
    grad: Array,
    param: Array,
    cut: list[int],
    at: int,
    step: int,
) -> tuple[list[Any], list[Array]]:
    buffers, number = turn
    grad = rows_of(grad)

    def piece(rank: int) -> Array:
        begin = min(cut[rank] + at, cut[rank + 1])
        rows = grad[begin : min(begin + step, cut[rank + 1])]
        return np.require(rows, param.dtype, ["C", "A"])

    mine = piece(link.rank)
    parts = [
        mine if rank == link.rank else buffers.like(mine, (number, rank))
        for rank in range(link.size)
    ]
    # What is sent, mpi4py keeps with the request.
    sends = [(rank, piece(rank)) for rank in link.others]
    return link.start(sends, [(rank, parts[rank]) for rank in link.others]), parts


class Returning:
    """Pieces of the params that have changed, on their way from who owns them to all."""

    AHEAD = 2

    def __init__(self, link: Link) -> None:
        self._link = link
        self._going: list[tuple[list[Any], list[tuple[Array, Array]], Any]] = []

    def start(self, param: Array, cut: list[int], at: int, step: int) -> None:
        """All ranks' rows from ``at`` on in each one's part."""
        param = rows_of(param)

        def rows(rank: int) -> Array:
            begin = min(cut[rank] + at, cut[rank + 1])
            found: Array = param[begin : min(begin + step, cut[rank + 1])]
            return found

        own = np.ascontiguousarray(rows(self._link.rank))
        into, staged = [], []
        for rank in self._link.others:
            dense = theirs = rows(rank)
            if not theirs.flags.c_contiguous:
                dense = np.empty(theirs.shape, theirs.dtype)
                staged.append((theirs, dense))
            into.append((rank, dense))
        requests = self._link.start([(rank, own) for rank in self._link.others], into, tag=1)
        self._going.append((requests, staged, own))
        if len(self._going) > self.AHEAD:
            self._finish_one()

    def _finish_one(self) -> None:
        requests, staged, _ = self._going.pop(0)
        self._link.wait(requests)
        for theirs, dense in staged:
            theirs[...] = dense

    def finish(self) -> None:
        while self._going:
            self._finish_one()


def own_rows(link: Link, buffers: Buffers, grad: RowGrad, cut: list[int], dtype: Any) -> RowGrad:
    """All ranks' rows that this one owns, the ranks' in order; numbered from its first one on.

    The values lie in the buffers.
    """
    rows = grad.rows.astype(np.int64)
    values = np.ascontiguousarray(grad.values, dtype)
    owner = np.searchsorted(np.asarray(cut[1:]), rows, side="right")
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=link.size).astype(np.int64)
    everyone = link.gather_counts(counts)[:, link.rank]
    found_rows = route(link, Buffers(), rows, order, counts, everyone)
    found_values = route(link, buffers, values, order, counts, everyone)
    return RowGrad(found_rows - cut[link.rank], found_values)


def route(
    link: Link, buffers: Buffers, items: Array, order: Array, counts: Array, expected: Array
) -> Array:
    """Send ``counts[r]`` items, as ``order`` numbers them, to rank r; what arrives, the ranks' in
    order, lies in the buffers."""

    def placed(use: Any, each: Array) -> list[Array]:
        ends = np.cumsum(each)
        shape = (int(ends[-1]), *items.shape[1:])
        whole = buffers.like(np.broadcast_to(items.dtype.type(0), shape), use)
        return [whole, *(whole[e - n : e] for e, n in zip(ends, each, strict=True))]

    found, *arriving = placed((items.dtype, "arriving"), expected)
    others = counts.copy()
    others[link.rank] = 0
    _, *leaving = placed((items.dtype, "leaving"), others)
    at = 0
    for rank, count in enumerate(counts):
        to = arriving[rank] if rank == link.rank else leaving[rank]
        np.take(items, order[at : at + count], axis=0, out=to, mode="clip")
        at += count
    link.exchange(
        [(rank, leaving[rank]) for rank in link.others],
        [(rank, arriving[rank]) for rank in link.others],
    )
    return found


def return_rows(link: Link, param: Array, rows: Array) -> None:
    """The rows that this rank has changed, to all others, and theirs into the param."""
    all_rows = link.gather_parts(rows)
    all_values = link.gather_parts(np.ascontiguousarray(param[rows]))
    for rank, (changed, values) in enumerate(zip(all_rows, all_values, strict=True)):
        if rank != link.rank:
            param[changed] = values


def all_rows(link: Link, grad: RowGrad, dtype: Any) -> RowGrad:
    """One RowGrad: the ranks' concatenated in order."""
    return RowGrad(
        np.concatenate(link.gather_parts(grad.rows.astype(np.int64))),
        np.concatenate(link.gather_parts(np.ascontiguousarray(grad.values, dtype))),
    )
