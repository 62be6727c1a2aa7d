"""Sums of gradients that reach the rank that owns the rows, and rows that come back."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from thalweg.mpi import link as links
from thalweg.mpi.layout import rows_of
from thalweg.mpi.link import Link, pieces
from thalweg.mpi.sums import add_in_order
from thalweg.rows import RowGrad

Array = np.ndarray[Any, Any]


def sum_dense(
    link: Link, grads: Sequence[Array], cuts: Sequence[list[int]], outs: Sequence[Array]
) -> None:
    """Each rank's rows of ((g0 + g1) + g2) + ..., into dense arrays of the params' dtypes.

    What a rank sends and receives goes in pieces: one is added while the next one is on its way.
    """
    others = [rank for rank in range(link.size) if rank != link.rank]
    rounds = []
    for i, (cut, out) in enumerate(zip(cuts, outs, strict=True)):
        row = max(1, math.prod(out.shape[1:]) * out.itemsize)
        step = max(1, links.PIECE // row)
        longest = max(cut[rank + 1] - cut[rank] for rank in range(link.size))
        rounds += [(i, at, step) for at in range(0, longest, step)]
    started: list[Any] = []
    for number in range(len(rounds) + 1):
        if number < len(rounds):
            started.append(_start(link, others, grads, cuts, outs, *rounds[number]))
        if number > 0:
            requests, out, parts, _kept = started[number - 1]
            link.wait(requests)
            if len(out):
                add_in_order(out, parts)
            started[number - 1] = None


def _start(
    link: Link,
    others: list[int],
    grads: Sequence[Array],
    cuts: Sequence[list[int]],
    outs: Sequence[Array],
    i: int,
    at: int,
    step: int,
) -> tuple[list[Any], Array, list[Array], list[Array]]:
    cut, dtype = cuts[i], outs[i].dtype
    grad = rows_of(grads[i])

    def piece(rank: int) -> Array:
        begin = min(cut[rank] + at, cut[rank + 1])
        rows = grad[begin : min(begin + step, cut[rank + 1])]
        return np.require(rows, dtype, ["C", "A"])

    out = outs[i][at : at + step]
    parts = [piece(rank) if rank == link.rank else np.empty_like(out) for rank in range(link.size)]
    kept = [piece(rank) for rank in others]
    requests: list[Any] = []
    requests += link.start([], [(rank, p) for rank in others for p in pieces(parts[rank])])
    requests += link.start(
        [(rank, p) for rank, mine in zip(others, kept, strict=True) for p in pieces(mine)], []
    )
    return requests, out, parts, kept


def gather_dense(link: Link, params: Sequence[Array], cuts: Sequence[list[int]]) -> None:
    """Every rank's own rows of the params, to all others."""
    others = [rank for rank in range(link.size) if rank != link.rank]
    sends, into, staged = [], [], []
    for param, cut in zip(map(rows_of, params), cuts, strict=True):
        own = np.ascontiguousarray(param[cut[link.rank] : cut[link.rank + 1]])
        sends += [(rank, own) for rank in others]
        for rank in others:
            rows = param[cut[rank] : cut[rank + 1]]
            if not rows.flags.c_contiguous:
                staged.append((rows, rows := np.empty(rows.shape, rows.dtype)))
            into.append((rank, rows))
    link.exchange(sends, into)
    for rows, received in staged:
        rows[...] = received


def own_rows(link: Link, grad: RowGrad, cut: list[int], dtype: Any) -> RowGrad:
    """All ranks' rows that this one owns, the ranks' in order; numbered from its first one on."""
    rows = grad.rows.astype(np.int64)
    values = np.ascontiguousarray(grad.values, dtype)
    owner = np.searchsorted(np.asarray(cut[1:]), rows, side="right")
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=link.size).astype(np.int64)
    everyone = link.gather_counts(counts)[:, link.rank]
    found_rows = route(link, rows[order], counts, everyone)
    found_values = route(link, values[order], counts, everyone)
    return RowGrad(found_rows - cut[link.rank], found_values)


def route(link: Link, items: Array, counts: Array, expected: Array) -> Array:
    """Send ``counts[r]`` items to rank r, in order; what arrives, the ranks' in order."""
    ends = np.cumsum(counts)
    starts = ends - counts
    mine = slice(int(starts[link.rank]), int(ends[link.rank]))
    found = np.empty((int(expected.sum()), *items.shape[1:]), items.dtype)
    into_ends = np.cumsum(expected)
    into_starts = into_ends - expected
    found[into_starts[link.rank] : into_ends[link.rank]] = items[mine]
    others = [rank for rank in range(link.size) if rank != link.rank]
    link.exchange(
        [(rank, items[starts[rank] : ends[rank]]) for rank in others],
        [(rank, found[into_starts[rank] : into_ends[rank]]) for rank in others],
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
